"""The mismatch test as part of select: what it needs of the scores, what it drops, and what it says."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetune.errors import DataError, StaleError
from codetune.selection.strategies import STRATEGIES
from codetune.stages.select import SELECT, SHOWN_ROWS, USUALLY_SET_ASIDE
from codetune.stages.stage import RunContext
from codetune.store.manifest import read_manifest, write_manifest
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows

ROWS, WRONG = 60, 6
CALIBRATED = {"select__mismatch": "calibrated"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of a run with scores and embeddings."""
    project = make_small_world(tmp_path_factory.mktemp("scored"), ROWS)
    pipeline.score(context_of(project))
    pipeline.embed(context_of(project))
    return project


def plant(context: RunContext, values: Callable[[int], Mapping[str, float]]) -> list[str]:
    """Puts other values into the scores, by the number of the row, and returns the ids."""
    path = context.run.scores
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({"id": row["id"], **values(number)}) + "\n" for number, row in enumerate(rows)]
    path.write_text("".join(lines), encoding="utf-8")
    reseal(context, path)
    return [row["id"] for row in rows]


def reseal(context: RunContext, path: Path) -> None:
    """Seals an artefact again whose content was changed."""
    manifest = read_manifest(path)
    assert manifest is not None
    write_manifest(path, replace(manifest, digest=context.digests.artefact(path)))


def score(number: int, *, pairs: int = ROWS, wrong_pmi: float = -0.1, good_pmi: float = 0.8) -> dict[str, Any]:
    """The first rows are mismatched: their instruction gives less than that of most shuffled pairs."""
    noise = (number * 7 % 11 - 5) / 100
    pmi = (wrong_pmi if number < WRONG else good_pmi) + noise
    likelihoods = {"nll_conditional": 2 - pmi, "nll_unconditional": 2.5, "nll_empty": 2.0}
    row = {"ifd": 0.5 + number / 200, "pmi": pmi, **likelihoods, "answer_tokens": 40, "truncated": False}
    return row | ({"nll_shuffled": 2.0 - noise / 2, "shuffled_with": "0" * 16} if number < pairs else {})


def excluded(context: RunContext) -> dict[str, str]:
    lines = context.run.excluded.read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["why"] for row in map(json.loads, lines)}


def selected(context: RunContext) -> set[str]:
    lines = context.run.selection.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["id"] for line in lines}


def test_what_is_not_told_from_shuffled_pairs_is_dropped_with_its_reason(scored: Path) -> None:
    context = context_of(scored, **CALIBRATED, select__ratio=1.0)
    ids = plant(context, score)
    result = pipeline.select(context)
    found = excluded(context)
    assert set(found) == set(ids[:WRONG])
    assert all(why.startswith("mismatched pair: pmi ") for why in found.values())
    assert result.refused == {"mismatched pair: pmi of shuffled pairs": WRONG}
    assert selected(context) == set(ids[WRONG:])
    assert result.facts["mismatch_test"]["has_power"]
    assert "it catches" in SELECT.details(result).notes[-1]


def test_the_hardest_rows_and_the_mismatched_are_shown_by_a_line_of_text(scored: Path) -> None:
    context = context_of(scored, **CALIBRATED, select__ratio=1.0)
    ids = plant(context, score)
    result = pipeline.select(context)
    assert [row["id"] for row in result.facts["hardest"]] == ids[: -SHOWN_ROWS - 1 : -1]
    assert [row["id"] for row in result.facts["mismatched"]] == ids[WRONG - SHOWN_ROWS : WRONG][::-1]
    line = f"hardest taken: data.jsonl:{ROWS} (IFD {0.5 + (ROWS - 1) / 200:.3f}) Add {ROWS - 1} to the argument."
    assert line in SELECT.details(result).notes


@pytest.mark.parametrize(("wrong", "warns"), [(0, False), (1, True)])
def test_many_rows_set_aside_are_a_warning(
    scored: Path, capsys: pytest.CaptureFixture[str], wrong: int, warns: bool
) -> None:
    context = context_of(scored, select__mismatch="ifd", select__max_ifd=1.0, select__strategy="ifd_cluster")
    few = int(USUALLY_SET_ASIDE * ROWS) + wrong
    plant(context, lambda number: {**score(number), "ifd": 1.5 if number < few else 0.5})
    pipeline.select(context)
    told = f"select: {few} of {ROWS} rows are set aside"
    assert (told in capsys.readouterr().err) == warns


@pytest.mark.parametrize(("mismatch", "dropped"), [("calibrated", range(WRONG + 1)), ("ifd", [0]), ("none", [])])
def test_each_rule_drops_what_it_says(scored: Path, mismatch: str, dropped: list[int]) -> None:
    # Row 0 has an IFD above the limit; row 6 has a good one, and a pmi below 0.
    context = context_of(scored, select__ratio=1.0, select__mismatch=mismatch, select__max_ifd=1.0)
    changed = {0: {"ifd": 1.5}, WRONG: {"pmi": -0.3}}
    ids = plant(context, lambda number: score(number) | changed.get(number, {}))
    pipeline.select(context)
    assert set(excluded(context)) == {ids[number] for number in dropped}


def test_every_row_that_was_not_taken_is_named_once(scored: Path) -> None:
    context = context_of(scored, **CALIBRATED, select__ratio=0.5)
    ids = plant(context, lambda number: {"refused": "no memory"} if number == 59 else score(number))
    pipeline.select(context)
    found = excluded(context)
    assert found.keys() | selected(context) == set(ids)
    assert not found.keys() & selected(context)
    assert found[ids[59]] == "refused: no memory"
    assert "not taken" in found.values()


def test_a_test_without_power_drops_no_row_and_says_so(scored: Path) -> None:
    context = context_of(scored, **CALIBRATED, select__ratio=1.0)
    ids = plant(context, lambda number: score(number, wrong_pmi=0.0, good_pmi=0.0))
    result = pipeline.select(context)
    assert selected(context) == set(ids)
    assert "has no power and dropped no row" in SELECT.details(result).notes[-1]


def test_fewer_than_30_shuffled_pairs_are_too_few(scored: Path) -> None:
    context = context_of(scored, **CALIBRATED)
    plant(context, lambda number: score(number, pairs=29))
    with pytest.raises(DataError, match=r"29 shuffled pairs of 60 rows .* set select.mismatch to ifd"):
        pipeline.select(context)


def test_older_scores_without_the_empty_prompt_serve_what_does_not_need_it(scored: Path) -> None:
    needed = ("ifd", "nll_conditional", "nll_unconditional", "answer_tokens", "truncated")
    context = context_of(scored, **CALIBRATED)
    plant(context, lambda number: {key: score(number)[key] for key in needed})
    manifest = read_manifest(context.run.scores)
    assert manifest is not None
    settings = {key: value for key, value in manifest.settings.items() if key not in ("score.empty_prompt",)}
    write_manifest(context.run.scores, replace(manifest, settings=settings))
    with pytest.raises(StaleError, match=r"no nll_empty for 60 rows.*Run: codetune score .*select.mismatch to ifd"):
        pipeline.select(context)
    assert pipeline.select(context_of(scored, select__mismatch="ifd")).rows > 0


def test_scores_without_tokens_are_told_to_sifd_with_the_command_that_adds_them(scored: Path) -> None:
    context = context_of(scored, select__strategy="sifd")
    plant(context, score)
    told = r"no token_differences for 60 rows.*Run: codetune score --set score\.token_differences=true"
    with pytest.raises(StaleError, match=told):
        pipeline.select(context)


def test_sifd_takes_the_hardest_rows_by_the_tokens_that_count(scored: Path) -> None:
    # Of ten tokens one counts; |d| is 1 for the others. Even rows are harder by it, the later the more; odd ones not.
    context = context_of(scored, select__strategy="sifd", select__token_share=0.1, select__clusters=1, select__count=5)

    def with_tokens(number: int) -> dict[str, Any]:
        differences = np.ones(10, dtype="<f4")
        differences[3] = (1 + (number + 1) / 60) * (-1) ** number
        return score(number) | {"token_differences": base64.b64encode(differences.tobytes()).decode()}

    ids = plant(context, with_tokens)
    pipeline.select(context)
    assert selected(context) == {ids[number] for number in (58, 56, 54, 52, 50)}


@pytest.fixture(scope="module")
def reversed_rows(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of a run with the same rows and embeddings, in the opposite order."""
    project = make_small_world(tmp_path_factory.mktemp("reversed"), 1)
    write_rows(project.parent / "data.jsonl", rows(ROWS)[::-1])
    one, other = context_of(scored), context_of(project)
    pipeline.score(other)
    pipeline.embed(other)
    np.save(other.run.embeddings, np.load(one.run.embeddings)[::-1])
    reseal(other, other.run.embeddings)
    assert other.run.embedding_ids.read_text().split() == one.run.embedding_ids.read_text().split()[::-1]
    return project


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_takes_its_quota_in_any_order_of_the_data_set(
    scored: Path, reversed_rows: Path, strategy: str
) -> None:
    def values(number: int) -> dict[str, Any]:
        differences = np.random.default_rng(number).standard_normal(40).astype("<f4").tobytes()
        return score(number) | {"token_differences": base64.b64encode(differences).decode()}

    count = ROWS if strategy == "all" else 20
    flags: dict[str, Any] = {"select__strategy": strategy, "select__max_ifd": 2.0}
    flags |= {} if strategy == "all" else {"select__count": count}
    context, other = context_of(scored, **flags), context_of(reversed_rows, **flags)
    ids = plant(context, values)
    assert plant(other, lambda number: values(ROWS - 1 - number)) == ids[::-1]
    assert pipeline.select(context).rows == pipeline.select(other).rows == count
    assert selected(context) <= set(ids)
    assert excluded(context).keys() == set(ids) - selected(context)
    assert other.run.selection.read_bytes() == context.run.selection.read_bytes()


def test_the_number_of_clusters_can_be_found(scored: Path) -> None:
    context = context_of(scored, select__clusters="auto", select__max_ifd=2.0)
    plant(context, score)
    assert pipeline.select(context).facts["clusters"]


def test_a_count_above_what_is_eligible_is_an_error_that_says_how_many_are(scored: Path) -> None:
    context = context_of(scored, select__count=60, select__max_ifd=0.52)
    plant(context, score)
    with pytest.raises(DataError, match=r"select\.count is 60, and 4 of 60 rows are eligible"):
        pipeline.select(context)


def test_embeddings_of_other_rows_are_refused_without_scores_too(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 12)
    context = context_of(project, select__strategy="kcenter")
    pipeline.embed(context)
    path = context.run.embedding_ids
    path.write_text("0123456789abcdef\n" + "".join(path.read_text().splitlines(keepends=True)[1:]), encoding="ascii")
    reseal(context, context.run.embeddings)
    with pytest.raises(StaleError, match=r"holds 1 rows that the data set or its scores lack.*0123456789abcdef"):
        pipeline.select(context)


def test_a_vector_that_is_no_number_is_refused_with_its_row(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 12), select__strategy="kcenter")
    pipeline.embed(context)
    vectors = np.load(context.run.embeddings)
    vectors[7, 0] = np.nan
    np.save(context.run.embeddings, vectors)
    reseal(context, context.run.embeddings)
    row = context.run.embedding_ids.read_text().split()[7]
    with pytest.raises(DataError, match=rf"vector of row {row} .* holds NaN.*embed\.model"):
        pipeline.select(context)
