"""The worlds of the claim are what the README says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.project.file import commented_yaml, read_project
from codetune.records import Message, content_id
from tests.performance.claim import PLANTED_SHARE, REAL, SIZES, main, plant

ROWS = [(f"instruction {n}", f"answer {n}") for n in range(40)]


def test_planted_rows_have_the_answers_of_each_other_and_no_other_row_is_touched() -> None:
    planted, ids = plant(ROWS, 1)
    changed = [row for row, before in zip(planted, ROWS, strict=True) if row != before]
    assert len(changed) == len(ids) == PLANTED_SHARE * len(ROWS)
    assert {content_id((Message("user", asked), Message("assistant", said))) for asked, said in changed} == ids
    assert [asked for asked, _ in planted] == [asked for asked, _ in ROWS]
    assert sorted(said for _, said in planted) == sorted(said for _, said in ROWS)


@pytest.mark.parametrize("size", SIZES)
def test_the_project_of_each_size_is_one(tmp_path: Path, size: str) -> None:
    path = tmp_path / "codetune.yaml"
    path.write_text(commented_yaml({**REAL, **SIZES[size].settings}), encoding="utf-8")
    assert read_project(path, [], {}).train.holdout == REAL["train.holdout"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "43"], "holds the claim with --seed 42, and --seed is 43"),
        (["--seeds", "0"], "argument --seeds: '0'. Expected: a whole number, 1 or more"),
        (["--tasks", "x"], "argument --tasks: 'x'. Expected: a whole number"),
        (["--tasks", "1", "--set", "select.colour=1"], "select.colour: unknown key"),
    ],
)
def test_wrong_arguments_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    (tmp_path / "codetune.yaml").write_text(commented_yaml({**REAL, "model.path": "base"}), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["demo", str(tmp_path), *arguments])
    assert told in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["demo", str(tmp_path / "codetune.yaml")])
    assert "codetune.yaml is a file" in capsys.readouterr().err
