"""Several data sets from the project file to the model: counted by name in every result, stale by name and weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codetune.errors import DataError
from codetune.render import stage_document
from codetune.stages.dataset import ensure_examples
from codetune.stages.embed import EMBED
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from tests import pipeline
from tests.small_world import context_of, make_small_world, rows, write_rows


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = make_small_world(tmp_path, 8)
    chats = [
        {"messages": [{"role": "user", "content": f"Name {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(4)
    ]
    write_rows(tmp_path / "chats.jsonl", chats)
    write_rows(tmp_path / "again.jsonl", rows(9)[6:])
    return project


def mixture(project: Path, *parts: dict[str, Any], **flags: Any) -> RunContext:
    return context_of(project, dataset=[*parts], select__strategy="all", select__deduplicate="none", **flags)


PAIRS = {"name": "pairs", "path": "data.jsonl"}
CHATS = {"name": "chats", "path": "chats.jsonl", "weight": 0.5}
AGAIN = {"name": "again", "path": "again.jsonl"}
SOURCES = {
    "pairs": {"rows": 8, "refused": 0},
    "chats": {"rows": 2, "refused": 0, "left_by_weight": 2},
    "again": {"rows": 1, "refused": 2, "duplicates_of": {"pairs": 2}},
}


def test_every_result_counts_the_rows_of_each_data_set(project: Path) -> None:
    context = mixture(project, PAIRS, CHATS, AGAIN, train__max_steps=1)
    embedded, selected = pipeline.embed(context), pipeline.select(context)
    assert (embedded.rows, embedded.refused) == (11, {"duplicate": 2})
    taken = {"again": 1, "chats": 2, "pairs": 8}
    documents = [stage_document(embedded), stage_document(selected)]
    assert [document["sources"] for document in documents] == [SOURCES, SOURCES]
    assert documents[0]["row_formats"] == {"chat": 2, "pair": 9}
    assert documents[1]["taken_by_source"] == taken
    trained = stage_document(pipeline.train(context))
    assert trained["taken_by_source"] == taken


def test_chats_of_a_data_set_that_names_no_columns_are_read_without_a_warning(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(project.parent / "few.jsonl", rows(1))
    named = {"instruction": "instruction", "response": "output"}
    chats = {"name": "chats", "path": "chats.jsonl"}
    for columns, is_warned in (({}, False), (named, True)):
        context = mixture(project, {"name": "few", "path": "few.jsonl", **named}, {**chats, **columns})
        ensure_examples(context)
        assert ("most rows have turns" in capsys.readouterr().err) == is_warned


def test_another_weight_or_another_data_set_makes_artefacts_stale_and_a_copy_does_not(project: Path) -> None:
    pipeline.embed(mixture(project, PAIRS, CHATS))
    (project.parent / "copy.jsonl").write_bytes((project.parent / "chats.jsonl").read_bytes())
    assert stage_status(mixture(project, PAIRS, {**CHATS, "path": "copy.jsonl"}), EMBED).state == "done"
    other = stage_status(mixture(project, PAIRS, {**CHATS, "weight": 0.25}), EMBED)
    assert (other.state, "dataset.chats.weight 0.5, the project now says 0.25" in other.why) == ("stale", True)
    assert stage_status(mixture(project, PAIRS), EMBED).state == "stale"


def test_one_data_set_in_a_list_gives_the_rows_and_the_digest_of_that_data_set_alone(project: Path) -> None:
    pipeline.embed(context_of(project))
    alone = context_of(project).run.embeddings.read_bytes()
    listed = mixture(project, PAIRS, name="listed")
    assert pipeline.embed(listed).reused == 8
    assert listed.run.embeddings.read_bytes() == alone


def test_a_data_set_of_the_list_that_is_missing_is_an_error_that_names_it(project: Path) -> None:
    with pytest.raises(DataError, match=r"no file nowhere\.jsonl"):
        pipeline.embed(mixture(project, PAIRS, {"name": "gone", "path": "nowhere.jsonl"}))
