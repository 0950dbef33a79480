"""Two models on the same tasks, by hand and against the tests of scipy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from scipy.stats import binomtest

from codetune.benchmark.model_comparison import compare


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
    assert compare([first, second], seed=1) == [found]


def test_every_two_models_of_one_benchmark_are_compared() -> None:
    reports = [report(model, {"1": "p"}) for model in "abc"] + [
        report("d", {"1": "p"}, "other"),
        report("e", {"9": "p"}),
    ]
    assert [entry["models"] for entry in compare(reports, seed=1)] == [["a", "b"], ["a", "c"], ["b", "c"]]
