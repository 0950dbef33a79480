"""All verbs on a small world: what they leave behind, what they take up again, and what they refuse to mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from codetune.data import source
from codetune.errors import DataError, InputError, ModelError, StaleError
from codetune.render import stage_document
from codetune.stages.runner import run_stage
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from codetune.stages.train import TRAIN
from codetune.store.manifest import read_manifest
from codetune.training.checkpoint import MANIFEST
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows


def score(project: Path, **flags: Any) -> pipeline.StageResult:
    return pipeline.score(context_of(project, **flags), None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_small_world(tmp_path, 30)


def test_every_row_comes_out_once_in_the_order_of_the_data_set(project: Path) -> None:
    documents: list[Any] = [*rows(5), rows(1)[0], {"instruction": "x", "output": ""}, {"instruction": 3, "output": "y"}]
    write_rows(project.parent / "data.jsonl", documents)
    result = score(project)
    found = lines(result.artefact)
    assert len(found) == result.rows + sum(result.refused.values()) == 8
    assert [bool(row.get("ifd")) for row in found] == [True] * 5 + [False] * 3
    assert found[5] == {"id": None, "at": "data.jsonl:6", "refused": "duplicate of data.jsonl:1"} or found[5][
        "refused"
    ].endswith("data.jsonl:1")
    assert found[6]["id"] is not None
    assert result.refused["duplicate"] == 1


def test_a_second_run_does_nothing_again(project: Path) -> None:
    first = score(project)
    stamp = first.artefact.stat().st_mtime_ns
    again = score(project)
    assert (again.reused, again.rows) == (30, 30)
    assert first.artefact.stat().st_mtime_ns == stamp


def test_only_added_rows_are_scored_and_the_order_follows_the_data(project: Path) -> None:
    score(project)
    before = {row["id"]: row for row in lines(project.parent / "runs/small/scores.jsonl")}
    write_rows(project.parent / "data.jsonl", list(reversed(rows(34))))
    result = score(project)
    assert (result.reused, result.rows) == (30, 34)
    after = lines(result.artefact)
    assert all(row == before[row["id"]] for row in after if row["id"] in before)
    assert score(make_small_world(project.parent / "fresh", 30)).rows == 30


@pytest.mark.parametrize("verb", [pipeline.score, pipeline.embed])
def test_killed_between_the_artefact_and_its_seal_no_row_is_done_again(
    verb: Callable[[RunContext, None], pipeline.StageResult], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb(context_of(project), None)
    write_rows(project.parent / "data.jsonl", rows(33))
    with monkeypatch.context() as killed:
        killed.setattr("codetune.stages.runner.write_manifest", lambda *_: _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            verb(context_of(project), None)
    again = verb(context_of(project), None)
    assert (again.rows, again.reused) == (33, 33)
    assert not (again.artefact.parent / ".before" / again.stage).exists()


def _raise(error: type[BaseException]) -> NoReturn:
    raise error


def test_an_interrupt_says_what_is_saved(project: Path) -> None:
    context = context_of(project, select__strategy="random")

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="Interrupted before score had saved anything"):
        run_stage(context, replace(SCORE, work=interrupt))
    with pytest.raises(KeyboardInterrupt, match="Progress saved"):
        run_stage(context, replace(SCORE, write=interrupt))
    pipeline.select(context)
    with pytest.raises(KeyboardInterrupt, match="Interrupted before train had saved anything"):
        run_stage(context, replace(TRAIN, write=interrupt))
    (context.run.train / "checkpoint-1").mkdir(parents=True)
    (context.run.train / "checkpoint-1" / MANIFEST).touch()
    with pytest.raises(KeyboardInterrupt, match="Progress saved"):
        run_stage(context, replace(TRAIN, write=interrupt))


def test_cut_answers_are_counted(project: Path) -> None:
    result = score(project, score__max_length=64)
    assert 0 < result.facts["truncated"] == sum(row["truncated"] for row in lines(result.artefact) if "ifd" in row)


def test_every_process_has_the_threads_of_the_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("codetune.launch.devices.use_threads", asked.append)
    for count in (3, 7):
        monkeypatch.setattr("codetune.stages.row_stage.thread_count", lambda count=count: count)
        assert pipeline.score(context_of(project), ((count - 3) // 4, 2)).rows > 0
    assert asked == [3, 3]


def test_shards_give_the_bytes_of_one_process_whoever_finishes_last(tmp_path: Path) -> None:
    whole = score(make_small_world(tmp_path / "whole", 30))
    context = context_of(make_small_world(tmp_path / "shards", 30))
    assert pipeline.score(context, (1, 3)).state == "partial"
    assert pipeline.score(context, (2, 3)).state == "partial"
    assert not context.run.scores.exists()
    # Another count takes up what the first shards have done.
    assert pipeline.score(context, (0, 2)).state in ("partial", "done")
    last = pipeline.score(context, (1, 2))
    assert last.state == "done"
    assert last.artefact.read_bytes() == whole.artefact.read_bytes()
    assert pipeline.score(context, (98, 99)).state == "done"


def test_shards_made_with_other_settings_are_refused(project: Path) -> None:
    pipeline.score(context_of(project), (0, 3))
    with pytest.raises(StaleError, match=r"score\.max_length 256.*mv \S+\.parts \S+\.parts\.old$"):
        pipeline.score(context_of(project, score__max_length=128), (1, 3))


def test_embeddings_are_unit_vectors_in_data_order_and_shards_agree(tmp_path: Path) -> None:
    whole = pipeline.embed(context_of(make_small_world(tmp_path / "whole", 30)), None)
    context = context_of(make_small_world(tmp_path / "shards", 30))
    for index in range(3):
        result = pipeline.embed(context, (index, 3))
    assert result.state == "done"
    vectors = np.load(result.artefact)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert result.artefact.read_bytes() == whole.artefact.read_bytes()
    assert [row["id"] for row in lines(score(tmp_path / "whole/codetune.yaml").artefact)] == (
        whole.artefact.with_name("embeddings.ids").read_text().split()
    )


def test_select_stops_before_anything_where_scores_are_missing_stale_or_touched(project: Path) -> None:
    with pytest.raises(StaleError, match="codetune score"):
        pipeline.select(context_of(project))
    score(project)
    pipeline.embed(context_of(project), None)
    with pytest.raises(StaleError, match=r"max_length 256.*now says 128.*Run: codetune score"):
        pipeline.select(context_of(project, score__max_length=128))
    scores = project.parent / "runs/small/scores.jsonl"
    whole = scores.read_text()
    scores.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(StaleError, match=r"was changed after.*Run: codetune score"):
        pipeline.select(context_of(project))
    score(project)
    assert scores.read_text() == whole


def test_changed_data_stops_the_later_stages_until_scores_and_embeddings_follow(project: Path) -> None:
    for verb in (pipeline.score, pipeline.embed):
        verb(context_of(project), None)
    pipeline.select(context_of(project))
    write_rows(project.parent / "data.jsonl", rows(31))
    with pytest.raises(StaleError, match="has changed since"):
        pipeline.train(context_of(project))
    with pytest.raises(StaleError, match="has changed since"):
        pipeline.select(context_of(project))


def test_a_setting_by_flag_is_an_override_and_without_the_flag_the_artefact_is_made_again(project: Path) -> None:
    for stage in (pipeline.score, pipeline.embed):
        stage(context_of(project))
    flagged = pipeline.select(context_of(project, select__ratio=0.2))
    assert flagged.overrides == {"select.ratio": 0.2}
    assert stage_status(context_of(project), SELECT).state == "stale"
    assert stage_status(context_of(project, select__ratio=0.2), SELECT).state == "done"
    assert pipeline.train(context_of(project)).rows == flagged.rows  # a stage that is called alone takes what is there
    plain = pipeline.select(context_of(project))
    assert plain.rows > flagged.rows
    assert plain.overrides == {}
    assert "select.ratio 0.2, the project now says 0.4" in plain.facts["replaced"]


def test_the_data_set_is_parsed_once_for_all_stages_and_shards(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    read = source.read_file_rows  # the only door to the rows of a file
    monkeypatch.setattr(source, "read_file_rows", lambda *given: parsed.append("parsed") or read(*given))  # type: ignore[func-returns-value]
    for stage in (pipeline.score, pipeline.embed):
        stage(context_of(project), (0, 2))
        stage(context_of(project), (1, 2))
    for stage in (pipeline.select, pipeline.train):
        stage(context_of(project))
    assert parsed == ["parsed"]
    write_rows(project.parent / "data.jsonl", rows(31))
    pipeline.score(context_of(project))
    pipeline.embed(context_of(project))
    assert parsed == ["parsed"] * 2


def test_the_examples_hold_every_row_with_its_place_or_the_reason_of_its_refusal(project: Path) -> None:
    write_rows(project.parent / "data.jsonl", [*rows(2), rows(1)[0], {"instruction": "x", "output": ""}])
    score(project)
    found = lines(project.parent / "runs/small/examples.jsonl")
    assert [(row["at"], row.get("source"), row.get("refused")) for row in found] == [
        ("data.jsonl:1", "data.jsonl", None),
        ("data.jsonl:2", "data.jsonl", None),
        ("data.jsonl:3", None, "duplicate of data.jsonl:1"),
        ("data.jsonl:4", None, "empty answer"),
    ]
    assert found[0]["messages"][0] == {"role": "user", "content": "Add 0 to the argument."}


@pytest.mark.parametrize("strategy", ["random", "all"])
def test_a_selection_without_scores_counts_the_rows_that_reading_refused(project: Path, strategy: str) -> None:
    write_rows(project.parent / "data.jsonl", [*rows(4), rows(1)[0], {"instruction": "x", "output": ""}])
    result = pipeline.select(context_of(project, select__strategy=strategy, select__ratio=0.5))
    assert result.refused == {"duplicate": 1, "empty answer": 1}


def test_a_selection_by_scores_counts_every_row_that_cannot_be_taken_by_its_reason(project: Path) -> None:
    write_rows(project.parent / "data.jsonl", [*rows(8), rows(1)[0], {"instruction": "x", "output": ""}])
    scored = score(project)
    pipeline.embed(context_of(project))
    least = min(row["ifd"] for row in lines(scored.artefact)[:8])
    result = pipeline.select(context_of(project, select__max_ifd=least + 1e-6, select__ratio=1.0))
    dropped = {reason: count for reason, count in result.refused.items() if reason.startswith("mismatched")}
    assert {**scored.refused, **dropped} == result.refused
    assert {"duplicate": 1, "empty answer": 1}.items() <= result.refused.items()


def test_columns_with_context_that_is_not_read_are_named_once_and_in_every_result(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = rows(4)
    write_rows(project.parent / "data.jsonl", [{**first, "documents": ["a"], "lang": "python"}, *others])
    context = context_of(project, select__strategy="all")
    results = [pipeline.embed(context), pipeline.select(context)]
    assert [result.facts["left_out"] for result in results] == [{"documents": 1}] * 2
    assert [stage_document(result)["row_formats"] for result in results] == [{"pair": 4}] * 2
    assert capsys.readouterr().err.count("does not read, so the model will not see it: documents (1 row)") == 1


def test_the_files_of_other_splits_are_named_when_a_directory_is_read(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = project.parent / "data"
    data.mkdir()
    write_rows(data / "train-0.jsonl", rows(3))
    write_rows(data / "test-0.jsonl", rows(5))
    assert pipeline.select(context_of(project, dataset__path="data", select__strategy="all")).rows == 3
    assert "the files with it in their names are read, not test-0.jsonl" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"dataset\.split is dev, .* the names say test, train"):
        stage_status(context_of(project, dataset__path="data", dataset__split="dev", select__strategy="all"), SELECT)


def test_a_data_set_under_another_name_scores_nothing_again_and_its_rows_are_named_by_it(project: Path) -> None:
    before = score(project).artefact.read_bytes()
    (project.parent / "data.jsonl").rename(project.parent / "moved.jsonl")
    again = score(project, dataset__path="moved.jsonl")
    assert (again.reused, again.artefact.read_bytes()) == (30, before)
    assert {row["source"] for row in lines(project.parent / "runs/small/examples.jsonl")} == {"moved.jsonl"}


@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "interrupted"])
def test_a_moved_project_keeps_its_offline_encoder_when_rows_are_added(is_sealed: bool, project: Path) -> None:
    first = pipeline.embed(context_of(project), None if is_sealed else (0, 2))
    assert first.state == ("done" if is_sealed else "partial")
    moved = project.parent.rename(project.parent.with_name(f"{project.parent.name}-moved"))
    write_rows(moved / "data.jsonl", rows(31))
    again = pipeline.embed(context_of(moved / "codetune.yaml"))
    assert (again.rows, again.reused) == (31, first.rows)


def test_another_data_set_in_the_place_of_the_first_gets_an_encoder_of_its_own(tmp_path: Path) -> None:
    project = make_small_world(tmp_path / "used", 30)
    pipeline.embed(context_of(project))
    others = [{"instruction": f"Write a poem about {n}.", "output": f"poem {n}"} for n in range(30)]
    write_rows(project.parent / "data.jsonl", others)
    fresh = make_small_world(tmp_path / "fresh", 30)
    write_rows(fresh.parent / "data.jsonl", others)
    found = [pipeline.embed(context_of(one)).artefact.read_bytes() for one in (project, fresh)]
    assert found[0] == found[1]


def test_rows_of_an_interrupted_run_with_other_settings_are_named_by_status_and_made_again_with_a_warning(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.score(context_of(project), (0, 3)).state == "partial"
    assert stage_status(context_of(project), SCORE).why.endswith(" rows; shards of 3: 1 done (0), 2 not begun (1, 2)")
    other = context_of(project, score__max_length=128)
    assert stage_status(other, SCORE).why.endswith(" rows, made with other settings: they will be made again")
    assert pipeline.score(other).reused == 0
    assert "warning: score: settings, inputs or version have changed since it was interrupted" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_a_base_model_by_flag_is_told_under_the_name_that_was_said(project: Path) -> None:
    base = str(project.parent / "base")
    assert pipeline.score(context_of(project, model__path=base), None).overrides == {"model.path": base}


def test_a_selection_of_nothing_is_an_error_that_says_where_the_rows_went(project: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"No row is selected of 30: .* of the other 30 the ratio 0\.001 takes none.*Raise select",
    ):
        pipeline.select(context_of(project, select__strategy="random", select__ratio=0.001))
    assert not (project.parent / "runs/small/selection.jsonl").exists()


def test_selection_is_chat_format_and_a_strategy_leaves_out_what_it_does_not_know(project: Path) -> None:
    result = pipeline.select(context_of(project, select__strategy="random"))
    found = lines(result.artefact)
    assert len(found) == 12
    assert all(list(row) == ["id", "messages", "why"] for row in found)
    assert [message["role"] for message in found[0]["messages"]] == ["user", "assistant"]


def test_the_model_that_train_leaves_is_sealed_and_not_made_twice(project: Path) -> None:
    pipeline.select(context_of(project, select__strategy="random"))
    flags = {"select__strategy": "random"}
    first = pipeline.train(context_of(project, **flags))
    assert (first.rows, read_manifest(first.artefact) is not None) == (12, True)
    steps = [row["step"] for row in lines(project.parent / "runs/small/train/metrics.jsonl")]
    assert steps == [1, 2, 3]
    assert pipeline.train(context_of(project, **flags)).reused == 12
    other = pipeline.train(context_of(project, **flags, train__learning_rate=2e-3), replacing=True)
    assert (other.reused, other.overrides) == (0, {"train.learning_rate": 2e-3})


def test_a_damaged_data_set_is_told_before_a_model_is_looked_for(project: Path) -> None:
    with (project.parent / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": "x", "out\n')
    with pytest.raises(DataError, match=r"data\.jsonl:31"):
        score(project, model__path="no-such-model")


def test_a_column_that_does_not_exist_is_told_with_those_that_do(project: Path) -> None:
    with pytest.raises(DataError, match=r"instruction.*output"):
        score(project, dataset__response="answer")


def test_a_model_without_weights_is_an_input_error(project: Path) -> None:
    (project.parent / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        score(project)


def test_an_output_directory_of_another_project_is_left_alone(project: Path) -> None:
    score(project)
    with pytest.raises(InputError, match="belongs to project 'small'"):
        context_of(project, name="other", output_dir="runs/small")


def test_embeddings_of_other_rows_than_the_scores_are_refused(project: Path) -> None:
    score(project)
    write_rows(project.parent / "data.jsonl", rows(20))
    pipeline.embed(context_of(project), None)
    with pytest.raises(StaleError, match="Run: codetune score"):
        pipeline.select(context_of(project))


def test_a_training_without_a_checkpoint_stands_in_nobodys_way(project: Path) -> None:
    flags = {"select__strategy": "random"}
    pipeline.select(context_of(project, **flags))
    with pytest.raises(DataError):
        pipeline.train(context_of(project, **flags, train__max_length=2, train__too_long="drop"))
    assert pipeline.train(context_of(project, **flags)).rows == 12


def test_a_tokenizer_without_a_chat_template_is_told(project: Path) -> None:
    pipeline.select(context_of(project, select__strategy="random"))
    with pytest.raises(ModelError, match="has no chat template"):
        pipeline.train(context_of(project, select__strategy="random", model__chat_format="tokenizer"))
