from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from codetune.benchmark.expected_outputs import expected_path
from codetune.benchmark.judge import JudgeSolution, prepare
from codetune.benchmark.output_match import OutputRule
from codetune.benchmark.run_suite import Candidate
from codetune.benchmark.worker_pool import WorkerTimedOut, run_jobs
from tests.benchmark.tasks import PROMPT, problem

SLOW = f"import time\ntime.sleep(1.5)\n{PROMPT}    return 2 * x"
TASK = problem(plus_input=[[5]] * 3)


@pytest.fixture
def job(expected: Path) -> JudgeSolution:
    list(prepare([TASK], expected, 1, "none"))
    return JudgeSolution(Candidate(TASK, OutputRule(), SLOW, 1), expected_path(expected, TASK), "none")


def kill_workers(times: int) -> None:
    """Kills the one worker that runs a program, so many times."""
    killed: set[int] = set()
    patience = time.monotonic() + 30
    while len(killed) < times and time.monotonic() < patience:
        for worker in psutil.Process().children():
            if worker.pid not in killed and len(worker.children(recursive=True)) > 1:  # its zygote, and a program
                killed.add(worker.pid)
                worker.kill()
        time.sleep(0.01)


@pytest.mark.parametrize(("times", "answered"), [(1, True), (2, False)])
def test_a_job_whose_worker_is_killed_is_tried_once_more(job: JudgeSolution, times: int, answered: bool) -> None:
    killer = threading.Thread(target=kill_workers, args=(times,))
    killer.start()
    [(key, answer)] = run_jobs([("key", job)], 1, 60)
    killer.join()
    assert key == "key"
    if answered:
        assert isinstance(answer, bytes)
        assert json.loads(answer) == {"base": "pass", "plus": "pass", "failure": "", "starved": False}
    else:
        assert not isinstance(answer, bytes | WorkerTimedOut)
        assert answer.signal == 9


def test_a_job_over_its_limit_is_given_up(job: JudgeSolution) -> None:
    start = time.monotonic()
    assert list(run_jobs([("key", job)], 1, 1.0)) == [("key", WorkerTimedOut())]
    assert time.monotonic() - start < 5
