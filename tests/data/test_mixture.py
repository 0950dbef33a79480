"""Several data sets as one: the order, the rows that a weight takes, duplicates across them, and the counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from codetune.data.mixture import MixedRows
from codetune.data.source import DataSource, read_examples
from codetune.project.sections import Dataset
from codetune.records import Example, Refusal

DATASET = Dataset(instruction="problem", response="solution")


def source(path: Path, name: str, numbers: Sequence[int], weight: float = 1.0) -> DataSource:
    rows = [{"problem": f"Task {number}", "solution": f"answer({number})"} for number in numbers]
    file = path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSource(DATASET.model_copy(update={"path": file.name}), str(file), name, weight)


def mixed(*sources: DataSource) -> tuple[list[Example | Refusal], dict[str, dict[str, object]]]:
    rows = MixedRows(sources)
    return list(rows), rows.counts


def ids(rows: Sequence[Example | Refusal]) -> list[str]:
    return [row.id for row in rows if isinstance(row, Example)]


def test_data_sets_follow_each_other_and_their_rows_stand_under_their_names(tmp_path: Path) -> None:
    rows, counts = mixed(source(tmp_path, "b", range(2)), source(tmp_path, "a", range(2, 4)))
    assert [row.at for row in rows] == ["b: b.jsonl:1", "b: b.jsonl:2", "a: a.jsonl:1", "a: a.jsonl:2"]
    assert [row.source for row in rows if isinstance(row, Example)] == ["b", "b", "a", "a"]
    assert counts == {"b": {"rows": 2, "refused": 0}, "a": {"rows": 2, "refused": 0}}


def test_the_rows_are_those_of_each_data_set_alone(tmp_path: Path) -> None:
    parts = [source(tmp_path, "a", range(3)), source(tmp_path, "b", range(3, 5))]
    alone = [row for part in parts for row in read_examples(part.dataset, part.location)]
    assert ids(mixed(*parts)[0]) == ids(alone)


def test_a_duplicate_of_another_data_set_names_its_row_and_is_counted(tmp_path: Path) -> None:
    rows, counts = mixed(source(tmp_path, "a", [0, 1, 1]), source(tmp_path, "b", [1, 2]))
    assert [row for row in rows if isinstance(row, Refusal)] == [
        Refusal(None, "duplicate of a: a.jsonl:2", "a: a.jsonl:3"),
        Refusal(None, "duplicate of a: a.jsonl:2", "b: b.jsonl:1"),
    ]
    assert counts == {"a": {"rows": 2, "refused": 1}, "b": {"rows": 1, "refused": 1, "duplicates_of": {"a": 1}}}


@pytest.mark.parametrize(("weight", "taken"), [(0.5, 5), (0.1, 1), (0.01, 1), (0.11, 2), (0.3, 3), (1.0, 10)])
def test_a_weight_takes_its_share_of_the_rows_rounded_up_with_the_least_ids(
    tmp_path: Path, weight: float, taken: int
) -> None:
    whole, _ = mixed(source(tmp_path, "a", range(10)))
    rows, counts = mixed(source(tmp_path, "a", range(10), weight), source(tmp_path, "b", range(10, 13)))
    least = sorted(ids(whole))[:taken]
    assert ids(rows)[:-3] == [row_id for row_id in ids(whole) if row_id in least]
    assert counts["b"] == {"rows": 3, "refused": 0}
    left = {"left_by_weight": 10 - taken} if weight < 1 else {}
    assert counts["a"] == {"rows": taken, "refused": 0} | left


def test_the_rows_of_a_smaller_weight_are_among_those_of_a_larger_one_whatever_their_order(tmp_path: Path) -> None:
    few, _ = mixed(source(tmp_path, "a", range(20), 0.25))
    more, _ = mixed(source(tmp_path, "a", range(19, -1, -1), 0.5))
    assert {*ids(few)} < {*ids(more)}


def test_a_row_that_a_weight_leaves_out_is_taken_from_a_later_data_set_that_has_it(tmp_path: Path) -> None:
    rows, counts = mixed(source(tmp_path, "a", range(4), 0.5), source(tmp_path, "b", range(4)))
    assert len(ids(rows)) == 4
    assert counts["a"] == {"rows": 2, "refused": 0, "left_by_weight": 2}
    assert counts["b"] == {"rows": 2, "refused": 2, "duplicates_of": {"a": 2}}


def test_a_data_set_without_a_usable_row_gives_none(tmp_path: Path) -> None:
    rows, counts = mixed(source(tmp_path, "a", [1]), source(tmp_path, "b", [1], 0.5))
    assert len(ids(rows)) == 1
    assert counts["b"] == {"rows": 0, "refused": 1, "left_by_weight": 0, "duplicates_of": {"a": 1}}
    none = DataSource(DATASET.model_copy(update={"path": "none.jsonl"}), str(tmp_path / "none.jsonl"), "none", 0.5)
    (tmp_path / "none.jsonl").write_text('{"problem": "x", "solution": ""}\n', encoding="utf-8")
    _, counts = mixed(none)
    assert counts["none"] == {"rows": 0, "refused": 1, "left_by_weight": 0}
