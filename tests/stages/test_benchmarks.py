from __future__ import annotations

from pathlib import Path

import pytest

from codetune.benchmark.benchmarks import open_benchmark
from codetune.stages.benchmarks import part_of_benchmark
from tests.benchmark.published import LEETCODE
from tests.benchmark.tasks import write_rows


def test_tasks_without_a_date_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [LEETCODE | {"task_id": f"at {date}", "estimated_date": date} for date in ("", "2024-09-29", "2024-10-06")]
    whole = open_benchmark("leetcode", write_rows(tmp_path / "leetcode.jsonl", *rows), "leetcode")
    part = part_of_benchmark(whole, None, [], "2024-10")
    assert [task.date for task in part.problems] == ["2024-10-06"]
    assert "--after 2024-10: leetcode: 1 task of 3 left out, which have no date" in capsys.readouterr().err
    assert part_of_benchmark(whole, None, [], "") == whole
    assert capsys.readouterr().err == ""
