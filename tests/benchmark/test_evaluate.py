from __future__ import annotations

import json

import pytest

from codetune.benchmark.evaluate import check_samples, evaluate
from codetune.benchmark.statistics import bootstrap_interval, wilson_interval
from codetune.errors import DataError, InputError
from codetune.records import Completion, Verdict
from tests.benchmark.tasks import problem

TASKS = [problem(task_id=f"Own/{number}") for number in range(4)]


def test_the_document_is_that_of_the_contract() -> None:
    verdicts = [
        Verdict("Own/2", "timeout", "timeout"),
        Verdict("Own/0", "pass", "fail", failure="plus call 3, double(1): wrong answer"),
        Verdict("Own/1", "pass", "pass"),
    ]
    found = evaluate("demo", "tuned", "landlock", TASKS, verdicts, [1], 42)
    assert json.loads(json.dumps(found)) == {
        "benchmark": "demo",
        "model": "tuned",
        "sandbox": "landlock",
        "tasks": 3,
        "tasks_in_benchmark": 4,
        "samples": 3,
        "pass_at_k": {"base": {"pass@1": pytest.approx(2 / 3)}, "plus": {"pass@1": pytest.approx(1 / 3)}},
        "interval_95": {
            "base": {"pass@1": list(wilson_interval(2, 3))},
            "plus": {"pass@1": list(wilson_interval(1, 3))},
        },
        "verdicts": {
            "Own/0": [{"base": "pass", "plus": "fail"}],
            "Own/1": [{"base": "pass", "plus": "pass"}],
            "Own/2": [{"base": "timeout", "plus": "timeout"}],
        },
        "failures": {"Own/0": ["plus call 3, double(1): wrong answer"]},
    }
    assert list(found["verdicts"]) == ["Own/0", "Own/1", "Own/2"]


def test_several_samples_a_task_give_any_k_and_a_bootstrap() -> None:
    # pass@2 of 1 in 3: 1 - C(2, 2) / C(3, 2) = 2/3; of 0 in 3: 0
    outcomes = {"Own/0": ["fail", "pass", "fail"], "Own/1": ["fail", "fail", "fail"]}
    verdicts = [
        Verdict(task_id, outcome, outcome, sample)  # type: ignore[arg-type]
        for task_id, of_task in outcomes.items()
        for sample, outcome in enumerate(of_task)
    ]
    found = evaluate("demo", "tuned", "landlock", TASKS, verdicts[::-1], [1, 2], 42)
    assert found["pass_at_k"]["base"] == {"pass@1": pytest.approx(1 / 6), "pass@2": pytest.approx(1 / 3)}
    assert found["interval_95"]["base"]["pass@2"] == pytest.approx(bootstrap_interval([2 / 3, 0.0], 42))
    assert [row["base"] for row in found["verdicts"]["Own/0"]] == ["fail", "pass", "fail"]
    assert found["samples"] == 6


def test_a_k_larger_than_the_samples_of_a_task_is_an_error() -> None:
    verdicts = [
        Verdict("Own/0", "pass", "pass", 0),
        Verdict("Own/0", "pass", "pass", 1),
        Verdict("Own/1", "pass", "pass"),
    ]
    with pytest.raises(InputError, match=r"pass@2 was asked for, and Own/1 has 1 sample\."):
        evaluate("demo", "tuned", "landlock", TASKS, verdicts, [1, 2], 42)
    with pytest.raises(InputError, match="no samples"):
        evaluate("demo", "tuned", "landlock", TASKS, [], [1], 42)


def test_impossible_samples_are_refused_before_anything_runs() -> None:
    check_samples(TASKS, [Completion("Own/1", "")], [1])
    with pytest.raises(InputError, match="pass@3"):
        check_samples(TASKS, [Completion("Own/1", "")], [1, 3])
    with pytest.raises(DataError, match="Own/7"):
        check_samples(TASKS, [Completion("Own/7", "")], [1])
