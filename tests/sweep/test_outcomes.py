"""A sweep: every combination and seed, with controls; continued where it was killed; nothing is done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codetune import render
from codetune.errors import ProjectError
from codetune.sweep.outcomes import HELD_OUT_LOSS, sweep_outcomes
from codetune.sweep.perform import run_sweep
from codetune.sweep.variants import Sweep
from tests.small_world import make_small_world

SETTINGS = ["select.clusters=2", "train.holdout=8", "train.max_steps=1"]
RATIOS = {"select.strategy": ["ifd_cluster"], "select.ratio": [0.3, 0.6]}
NAMES = ["ifd_cluster-0.3", "ifd_cluster-0.6"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    project = make_small_world(tmp_path_factory.mktemp("world"), 40)
    return Sweep(project, SETTINGS, RATIOS, seeds=2, has_controls=False, has_benchmarks=False)


@pytest.fixture(scope="module")
def done(sweep: Sweep) -> Sweep:
    """Killed after its first run, and continued."""
    runs = run_sweep(replace(sweep, seeds=1))
    assert next(runs) == "ifd_cluster-0.3-seed42"
    runs.close()
    list(run_sweep(sweep))
    return sweep


def trained_at(sweep: Sweep) -> dict[str, int]:
    """When each model was sealed, by run."""
    seals = sweep.directory.glob("*/model.seal")
    return {seal.parent.name: seal.stat().st_mtime_ns for seal in seals}


def test_a_sweep_that_was_killed_or_gets_more_seeds_does_only_what_is_missing(done: Sweep) -> None:
    before, table = trained_at(done), sweep_outcomes(done)
    assert set(before) == {f"{name}-seed{seed}" for name in NAMES for seed in (42, 43)}
    assert len(list(run_sweep(done))) == 4
    assert trained_at(done) == before
    assert sweep_outcomes(done) == table
    assert [found.seeds for found in sweep_outcomes(replace(done, seeds=1))] == [1, 1, 1]


def test_the_mean_over_seeds_has_an_interval_and_what_the_runs_cost(done: Sweep) -> None:
    base, small, large = sweep_outcomes(done)
    assert (base.name, base.rows, base.total_seconds) == ("base", None, None)
    assert (small.name, large.name) == tuple(NAMES)
    assert 0 < small.rows < large.rows
    assert small.total_seconds > small.training_seconds > 0
    found = small.figures[HELD_OUT_LOSS]
    assert found.low < found.mean < found.high


def test_scores_are_made_once(done: Sweep) -> None:
    seals = [json.loads(path.read_text()) for path in sorted(done.directory.glob("*/scores.jsonl.seal"))]
    assert sum("taken_from" in seal["facts"] for seal in seals) == len(seals) - 1 == 3


def test_a_variant_is_compared_with_as_many_random_rows_and_with_all(done: Sweep) -> None:
    small = replace(done, varied={**RATIOS, "select.ratio": [0.3]}, seeds=1, has_controls=True)
    list(run_sweep(small))
    base, own, control, everything = outcomes = sweep_outcomes(small)
    assert [found.name for found in outcomes] == ["base", NAMES[0], f"random as {NAMES[0]}", "all"]
    assert own.rows == control.rows < everything.rows == 32
    for name, other in (("random", control), ("all", everything), ("base", base)):
        expected = own.figures[HELD_OUT_LOSS].mean - other.figures[HELD_OUT_LOSS].mean
        assert own.against[name][HELD_OUT_LOSS].mean == pytest.approx(expected, abs=1e-9)
    path = small.directory / "sweep.json"
    document = json.loads(path.read_text())
    assert [found["name"] for found in document["base"] + document["variants"]] == [row.name for row in outcomes]
    shown = render.sweep(outcomes, path)
    assert [row[0] for row in shown.rows] == [found.name for found in outcomes]
    assert shown.notes[1].startswith("ifd_cluster-0.3 against random: held-out loss ")


def test_variants_that_differ_in_what_controls_do_not_read_have_the_same_controls(done: Sweep) -> None:
    varied = {"select.strategy": ["ifd_cluster"], "select.mismatch": ["ifd", "none"]}
    both = replace(done, assignments=[*SETTINGS, "select.count=9"], varied=varied, seeds=1, has_controls=True)
    runs = list(run_sweep(both))
    assert [runs.count(name) for name in ("random-count_9-seed42", "all-seed42")] == [1, 1]
    places = {found.name: found.runs for found in sweep_outcomes(both)}
    first, second = (places[f"random as ifd_cluster-mismatch_{rule}"] for rule in ("ifd", "none"))
    assert first == second == [str(both.directory / "random-count_9-seed42")]


def test_held_out_rows_that_do_not_count_are_in_no_figure(done: Sweep) -> None:
    before = sweep_outcomes(done)[1]
    reports = [json.loads((Path(run) / "evaluation/holdout/tuned.json").read_text())["losses"] for run in before.runs]
    wrong = next(iter(reports[0]))
    left = [[loss for row, loss in losses.items() if row != wrong] for losses in reports]
    expected = [sum(nats for nats, _ in losses) / sum(tokens for _, tokens in losses) for losses in left]
    found = sweep_outcomes(replace(done, uncounted={wrong}))[1].figures[HELD_OUT_LOSS]
    assert found.mean == pytest.approx(sum(expected) / 2, abs=1e-9)
    assert found.mean != before.figures[HELD_OUT_LOSS].mean


def test_a_variant_with_wrong_settings_is_an_error_before_the_first_run(sweep: Sweep) -> None:
    with pytest.raises(ProjectError, match=r"select.ratio is 2.0"):
        next(run_sweep(replace(sweep, varied={"select.ratio": [0.3, 2.0]})))
