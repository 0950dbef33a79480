"""Machines held against each other: by hand, and two real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetune.launch.process_group import SINGLE_PROCESS
from codetune.report.nodes import COMPARED, compare
from tests.small_world import make_small_world, run_codetune


def test_machines_that_are_alike_are_all_right() -> None:
    findings = compare([facts("a", 0), facts("a", 1), facts("b", 2)])
    assert {finding.state for finding in findings} == {"ok"}
    assert findings[0].found == "2 on a, 1 on b"


@pytest.mark.parametrize("name", COMPARED)
def test_the_host_that_differs_is_named(name: str) -> None:
    findings = {
        found.name: found for found in compare([facts("a", 0), facts("b", 1, **{name: "other"}), facts("c", 2)])
    }
    assert [found.name for found in findings.values() if found.state == "wrong"] == [name]
    assert findings[name].found == "b has other; the others have same"
    assert findings[name].command


def test_of_two_machines_the_first_is_right() -> None:
    (wrong,) = [found for found in compare([facts("a", 0), facts("b", 1, torch="old")]) if found.state == "wrong"]
    assert wrong.found == "b has old; the others have same"


def test_the_clock_that_is_off_is_named_with_its_seconds() -> None:
    findings = compare([facts("a", 0), facts("b", 1, clock=1060.0), facts("c", 2)])
    (wrong,) = [found for found in findings if found.state == "wrong"]
    assert (wrong.name, wrong.found) == ("clocks", "b is +60 s off")


def test_texts_of_any_length_are_gathered() -> None:
    assert SINGLE_PROCESS.gather("é" * 3) == ["ééé"]


def test_two_processes_reach_each_other_and_sum(tmp_path: Path) -> None:
    make_small_world(tmp_path, 6)
    told = run_codetune("doctor", "--nodes", "--json", "--set", "launch.processes=2", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    findings = {found["name"]: found for found in json.loads(told.stdout)["findings"]}
    assert findings["ranks"]["found"].startswith("2 on ")
    assert findings["sum over all ranks"]["found"].startswith("right")
    assert not (tmp_path / "runs").exists()


def facts(host: str, rank: int, **others: Any) -> dict[str, Any]:
    return {
        "host": host,
        "rank": rank,
        "clock": 1000.0,
        "reduce_seconds": 0.1,
        **dict.fromkeys(COMPARED, "same"),
        **others,
    }
