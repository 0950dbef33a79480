"""The order of a sweep: wrong input before the first training, failures after the last one, runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.errors import CodetuneError, InputError
from codetune.stages.runner import lock_name
from codetune.stages.stage import StageRequest
from codetune.stages.train import TRAIN
from codetune.store.locks import locked
from codetune.store.run_directory import Run
from codetune.sweep.outcomes import sweep_outcomes
from codetune.sweep.perform import run_sweep
from codetune.sweep.variants import Sweep
from tests.small_world import make_small_world

SETTINGS = ["select.clusters=1", "train.holdout=4", "train.max_steps=1", "select.strategy=random"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_world(tmp_path_factory.mktemp("world"), 16)


def sweep(project: Path, name: str, varied: dict[str, list[object]], at_once: int | None = None) -> Sweep:
    settings = [*SETTINGS, f"name={name}"]
    return Sweep(project, settings, varied, 1, has_controls=False, has_benchmarks=False, at_once=at_once)


def test_input_that_is_wrong_for_one_variant_is_told_before_anything_is_trained(project: Path) -> None:
    asked = sweep(project, "wrong", {"dataset.path": ["data.jsonl", "nowhere.jsonl"], "select.count": [4, 400]})
    with pytest.raises(InputError, match=r"nothing was trained") as told:
        list(run_sweep(asked))
    assert "nowhere.jsonl" in str(told.value)
    with pytest.raises(InputError, match=r"^1 run failed; nothing was trained.*\ncount_400-seed42: .*400"):
        list(run_sweep(sweep(project, "wrong", {"select.count": [4, 400]})))
    assert not list(asked.directory.glob("*/model"))


def test_of_a_training_that_fails_the_others_are_done_and_it_is_named(project: Path) -> None:
    asked = sweep(project, "failing", {"select.count": [4, 5, 6]})
    first, second, third = (asked.run_of(variant, 0) for variant in asked.variants)
    ended = run_sweep(asked)
    assert next(ended) == first.name
    with locked(Run(second.project.run_dir), lock_name(TRAIN, StageRequest()), None):
        assert next(ended) == third.name
        with pytest.raises(CodetuneError, match=r"^1 run failed; the others are done.*\ncount_5-seed42: .*running"):
            next(ended)
    assert list(run_sweep(asked)) == [first.name, second.name, third.name]


def test_runs_side_by_side_give_the_table_of_runs_in_turn(project: Path) -> None:
    varied: dict[str, list[object]] = {"select.count": [4, 6]}
    together, in_turn = sweep(project, "together", varied, at_once=2), sweep(project, "in-turn", varied)
    assert sorted(run_sweep(together)) == sorted(run_sweep(in_turn)) == ["count_4-seed42", "count_6-seed42"]
    assert [row.figures for row in sweep_outcomes(together)] == [row.figures for row in sweep_outcomes(in_turn)]
