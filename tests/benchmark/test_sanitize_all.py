"""Each sample has its budget; what is given up is counted, and right nowhere."""

from __future__ import annotations

import pytest

from codetune.benchmark import sanitize_all as budget
from codetune.benchmark import worker_pool
from codetune.benchmark.sanitize import SanitizedSample, sanitize
from codetune.benchmark.sanitize_all import sanitize_all
from codetune.records import Solution
from tests.benchmark.tasks import PROMPT, problem

RIGHT = f"{PROMPT}    return 2 * x"


def sanitized(*texts: str) -> list[SanitizedSample]:
    pairs = [(problem(), Solution("Own/0", text, sample)) for sample, text in enumerate(texts)]
    found = dict(sanitize_all(pairs, 1))
    return [found[position] for position in range(len(texts))]


def test_a_sample_beyond_its_budget_is_given_up_and_the_others_are_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    main = "from codetune.benchmark.worker_pool import serve"
    limits = "sanitize_all.CPU_SECONDS = 0.5"
    worker = worker_pool.WORKER.replace(main, f"from codetune.benchmark import sanitize_all; {limits}; {main}")
    monkeypatch.setattr(worker_pool, "WORKER", worker)
    slow = "@a\n" * 3000  # a beginning without an end, on every line
    too_long = RIGHT + "\n" + "#" * budget.MOST_CHARACTERS
    answer = f"Sure!\n```python\n{RIGHT}\n```\nDone."
    found = sanitized(answer, slow, too_long, "return '\ud800'", answer)
    assert [bool(clean.given_up) for clean in found] == [False, True, True, False, False]
    assert [clean.solution.solution for clean in found[1:3]] == ["", ""]
    assert not any(clean.parses for clean in found[1:4])
    assert "0.5 s" in found[1].given_up
    assert found[0] == sanitize(problem(), Solution("Own/0", answer, 0))
    assert found[4].solution == Solution("Own/0", found[0].solution.solution, 4)
