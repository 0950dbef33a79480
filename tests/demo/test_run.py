"""The demo, run once as a user runs it: the whole pipeline end to end, and the figures that it promises."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from codetune.demo.run import demo
from codetune.errors import InputError, StaleError
from tests.small_world import run_codetune


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def told(place: Path) -> Any:
    # On one core, which costs less processor time than two: other tests have the other one.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    done = run_codetune("demo", "world", "--json", cwd=place, timeout=1500)
    os.sched_setaffinity(0, cores)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tuned_solves_four_of_five_held_out_tasks_and_base_at_most_half_of_that(told: Any) -> None:
    base, tuned = (model["pass_at_k"]["base"]["pass@1"] for model in told["models"])
    assert tuned >= 0.8
    assert base <= tuned / 2


def test_nearly_all_mismatched_rows_are_dropped_as_such_and_few_others(told: Any) -> None:
    assert told["mismatched"]["dropped"] >= 0.95 * told["mismatched"]["rows"]
    assert told["good"]["dropped"] <= 0.05 * told["good"]["rows"]


def test_every_stage_is_timed_and_says_what_it_did(told: Any) -> None:
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert stages["score"]["refused"] == {"duplicate": 60}
    assert stages["select"]["rows"] < stages["score"]["rows"] * 0.4
    assert stages["select"]["diagnostics"]["cost"]["flops"]["scoring"] > 0
    assert {"score", "embed", "select", "train", "generate", "sanitize", "evaluate", "total"} <= set(told["seconds"])


def test_what_the_demo_leaves_behind_is_a_project_whose_every_stage_is_done(told: Any, place: Path) -> None:
    status = json.loads(run_codetune("status", "--json", cwd=place / "world").stdout)
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    assert status["next"] is None


def test_a_demo_with_another_seed_leaves_the_finished_one_as_it_is(told: Any, place: Path) -> None:
    before = {path: path.read_bytes() for path in (place / "world").iterdir() if path.is_file()}
    with pytest.raises(StaleError, match=r"seed 42, the flag now says 7\. What would be lost: a model of"):
        demo(place / "world", full=False, seed=7, assignments=[])
    assert {path: path.read_bytes() for path in (place / "world").iterdir() if path.is_file()} == before


def test_the_demo_writes_over_nothing_of_anybodys(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    refused = run_codetune("demo", "mine", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_a_file_instead_of_the_demos_directory_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"taken is a file\. Expected: a directory .* codetune demo DIR"):
        demo(tmp_path / name, False, 1, [])
