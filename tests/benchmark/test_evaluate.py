from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from scipy.stats import binomtest

from codetune.benchmark.evaluate import check_samples, compare, evaluate
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


def report(model: str, verdicts: Mapping[str, str | Sequence[str]], benchmark: str = "b") -> Any:
    """Verdicts of the base tests by task, one letter a sample: p for pass, f for fail. None passes the plus tests."""
    judged = {
        task: [{"base": {"p": "pass", "f": "fail", "t": "timeout"}[letter], "plus": "fail"} for letter in letters]
        for task, letters in verdicts.items()
    }
    return {"benchmark": benchmark, "model": model, "verdicts": judged}


def test_tasks_won_and_lost_are_named_on_the_tasks_that_both_have() -> None:
    first = report("a", {"1": "p", "2": "p", "3": "f", "4": "p", "6": "t"})
    second = report("b", {"1": "p", "2": "f", "3": "f", "5": "p", "6": "p"})
    (found,) = compare([first, second], seed=1)
    assert (found["models"], found["tasks"], found["one_task"]) == (["a", "b"], 4, 0.25)
    base = found["base"]
    assert (base["won"], base["lost"], base["only_first"], base["only_second"]) == (["6"], ["2"], 1, 1)
    # One against one: as even as can be.
    assert (base["test"], base["p_value"], base["difference"]) == ("exact McNemar", 1.0, 0.0)
    assert (found["plus"]["won"], found["plus"]["p_value"]) == ([], 1.0)


def test_one_sample_a_task_gets_the_exact_test() -> None:
    # 9 tasks won and 1 lost of 40: the binomial test of 1 in 10.
    first = report("a", {str(n): "p" if n == 0 else "f" for n in range(40)})
    second = report("b", {str(n): "p" if 1 <= n <= 9 else "f" for n in range(40)})
    (found,) = compare([first, second], seed=1)
    assert found["base"]["p_value"] == pytest.approx(binomtest(1, 10).pvalue)
    assert found["base"]["difference"] == pytest.approx(8 / 40)
    # 2.8016 * sqrt(10 / 40 / 40) = 0.2215 is more than 0.2: significant, and below what these tasks find.
    assert found["base"]["least_difference"] == pytest.approx(0.2215, abs=5e-5)
    assert not found["base"]["told_apart"]
    low, high = found["base"]["interval_95"]
    # Differences +1 nine times, -1 once, else 0: mean 0.2, standard error sqrt((10 / 40 - 0.04) / 40) = 0.0725.
    assert (low, high) == (pytest.approx(0.2 - 1.96 * 0.0725, abs=0.03), pytest.approx(0.2 + 1.96 * 0.0725, abs=0.03))


def test_several_samples_a_task_get_the_paired_bootstrap() -> None:
    # Half of the tasks gain one sample of four, none loses: every resample that draws one of them lies above.
    first = report("a", {str(n): "pfff" for n in range(40)})
    second = report("b", {str(n): "ppff" if n % 2 else "pfff" for n in range(40)})
    (found,) = compare([first, second], seed=1)
    assert found["base"]["test"] == "paired bootstrap"
    assert found["base"]["difference"] == pytest.approx(0.125)
    assert found["base"]["p_value"] == pytest.approx(2 / 10_001)
    assert len(found["base"]["won"]) == 20
    # Differences 0.25 and 0 twenty times each: standard error 0.125 / sqrt(40) = 0.0198, times 2.8016 is 0.0554.
    assert found["base"]["least_difference"] == pytest.approx(0.0554, rel=0.03)
    assert found["base"]["told_apart"]
    assert compare([first, second], seed=1) == [found]


def test_every_two_models_of_one_benchmark_are_compared() -> None:
    reports = [report(model, {"1": "p"}) for model in "abc"] + [
        report("d", {"1": "p"}, "other"),
        report("e", {"9": "p"}),
    ]
    assert [entry["models"] for entry in compare(reports, seed=1)] == [["a", "b"], ["a", "c"], ["b", "c"]]
