from __future__ import annotations

from pathlib import Path

import pytest

from codetune.benchmark.benchmarks import Benchmark, benchmark_digest, open_benchmark
from codetune.benchmark.parts import part_of
from codetune.errors import UsageError
from tests.benchmark.published import LEETCODE
from tests.benchmark.tasks import ROW, write_rows


def test_a_part_of_a_benchmark_has_a_name_of_its_own(tmp_path: Path) -> None:
    rows = [ROW | {"task_id": f"Own/{number}"} for number in range(3)]
    whole = open_benchmark("own.jsonl", write_rows(tmp_path / "own.jsonl", *rows), "own")
    assert (whole.name, len(whole.problems), whole.digest) == ("own", 3, benchmark_digest(whole.problems))
    part = part_of(whole, None, ["Own/2", "Own/1"])
    assert [task.task_id for task in part.problems] == ["Own/1", "Own/2"]
    assert (part.name, part.title, part.digest) == (f"own-{part.digest[:8]}", "own", benchmark_digest(part.problems))
    assert part.whole == whole.problems
    assert part_of(whole, 3, []) == whole
    with pytest.raises(UsageError, match=r"--task Own/7: the benchmark has no such task .did you mean Own/"):
        part_of(whole, None, ["Own/7"])


@pytest.fixture
def dated(tmp_path: Path) -> Benchmark:
    dates = ("2024-09-29", "2024-10-06", "2025-01-05")
    rows = [LEETCODE | {"task_id": date, "estimated_date": date} for date in dates]
    return open_benchmark("leetcode", write_rows(tmp_path / "leetcode.jsonl", *rows), "leetcode")


def test_only_tasks_since_a_date_are_used(dated: Benchmark) -> None:
    later = part_of(dated, None, [], "2024-10")
    assert [task.date for task in later.problems] == ["2024-10-06", "2025-01-05"]
    assert later.name != dated.name == part_of(dated, None, [], "2024").name
    assert [task.date for task in part_of(dated, 1, [], "2024-10-07").problems] == ["2025-01-05"]
    with pytest.raises(UsageError, match="leetcode: none of the named tasks is dated 2024-10 or later"):
        part_of(dated, None, ["LeetCode/2024-09-29"], "2024-10")


@pytest.mark.parametrize("after", ["2025-02", "October", "24-10", "2024-13", "2024-11-31"])
def test_what_is_no_date_or_later_than_all_tasks_is_told_with_the_dates_there_are(dated: Benchmark, after: str) -> None:
    with pytest.raises(UsageError, match=f"--after {after}: leetcode: .* dated 2024-09-29 to 2025-01-05"):
        part_of(dated, None, [], after)


def test_tasks_without_dates_have_no_part_since_a_date(tmp_path: Path) -> None:
    undated = open_benchmark("own", write_rows(tmp_path / "own.jsonl", ROW), "own")
    with pytest.raises(UsageError, match="own: its tasks have no dates"):
        part_of(undated, None, [], "2024-10")
