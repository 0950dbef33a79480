from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import pytest

from codetune.sandbox import program, serialization
from codetune.sandbox.launcher import (
    NO_HARNESS,
    CallReport,
    ProgramEnded,
    Sandbox,
    readable_paths,
    seconds_of_all_threads,
    seconds_without_cpu,
)
from codetune.sandbox.program import COMPUTED, PATIENCE, WAITED, ExecutionRequest
from codetune.sandbox.tiers import SandboxError
from tests.sandbox.hostile_programs import RAW_THREADS
from tests.sandbox.tiers import each_tier

EMPTY_FILES = """import os
def make_file(number):
    try: os.close(os.open(f'f{number}', os.O_CREAT | os.O_WRONLY))
    except OSError: return False
    return True
"""


def request(code: str, calls: list[list[object]], limit: float = 1.0, wall_factor: int = 1) -> ExecutionRequest:
    seconds = (limit,) * len(calls)
    return ExecutionRequest(code, "f", pickle.dumps(calls), seconds, wall_factor, 2**32, "value", ())


@each_tier(and_none=True)
def test_calls_are_reported_one_by_one_with_their_time(tier: str, tmp_path: Path) -> None:
    sandbox = Sandbox.start(tier, tmp_path, NO_HARNESS)
    code = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    with sandbox.run(request(code, [[0], [0.05]]), 20) as running:
        reports = running.reports()
        found = [next(reports), next(reports)]
    sandbox.close()
    assert all(isinstance(report, CallReport) and report.kind == program.VALUE for report in found)
    assert [serialization.decode(report.content) for report in found if isinstance(report, CallReport)] == [0, 0.05]
    assert isinstance(found[1], CallReport)
    assert found[1].seconds >= 0.05


@each_tier(and_none=True)
def test_a_program_is_killed_at_its_deadline_and_the_next_one_runs(tier: str, tmp_path: Path) -> None:
    sandbox = Sandbox.start(tier, tmp_path, NO_HARNESS)
    start = time.monotonic()
    with sandbox.run(request("while True: pass", [[0]]), 0.5) as running:
        assert next(running.reports()) in (ProgramEnded("timeout"), ProgramEnded("starved"))  # as the machine is busy
        pid = running.pid
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - start < 10
    with sandbox.run(request("def f(x): return x", [[7]]), 20) as running:
        report = next(running.reports())
    assert isinstance(report, CallReport)
    assert serialization.decode(report.content) == 7
    sandbox.close()


@pytest.mark.parametrize(
    ("code", "wall_factor"),
    [
        ("import time\ndef f(x): time.sleep(9)", 1),
        ("import time\ndef f(x): time.sleep(9)", 2),
        ("def f(x):\n    while True: pass", 50),
    ],
    ids=["sleeping, by the clock", "sleeping, by the clock when CPU time is limited", "busy, by CPU time"],
)
def test_a_call_that_uses_up_its_time_is_reported(code: str, wall_factor: int, tmp_path: Path) -> None:
    sandbox = Sandbox.start("none", tmp_path, NO_HARNESS)
    with sandbox.run(request(code, [[0]], limit=0.2, wall_factor=wall_factor), 20) as running:
        report = next(running.reports())
    sandbox.close()
    assert isinstance(report, CallReport)
    assert report.kind == program.TIMED_OUT


@each_tier(and_none=False)
@pytest.mark.parametrize(
    ("code", "most"),
    [
        (f"{RAW_THREADS}def f(most):\n    return sum(start_thread(0x10f00) for _ in range(most))", 1100),
        (f"{EMPTY_FILES}def f(most):\n    return sum(make_file(number) for number in range(most))", 1024),
    ],
    ids=["threads", "files"],
)
def test_what_a_program_can_have_is_limited(tier: str, code: str, most: int, tmp_path: Path) -> None:
    sandbox = Sandbox.start(tier, tmp_path, NO_HARNESS)
    with sandbox.run(request(code, [[2 * most]]), 20) as running:
        report = next(running.reports())
    sandbox.close()
    assert isinstance(report, CallReport)
    assert 0 <= serialization.decode(report.content) < most


def test_a_program_that_may_wait_gets_no_more_computing_time(tmp_path: Path) -> None:
    sandbox = Sandbox.start("none", tmp_path, NO_HARNESS)
    with sandbox.run(request("while True: pass", [[0]], wall_factor=PATIENCE), 0.3) as running:
        assert isinstance(next(running.reports()), ProgramEnded)
        computed = seconds_of_all_threads(Path(f"/proc/{running.pid}/stat").read_text())
    sandbox.close()
    assert computed < 2 * 0.3  # and not PATIENCE times as much


def test_a_program_that_may_wait_for_a_cpu_may_not_sleep_instead(tmp_path: Path) -> None:
    sandbox = Sandbox.start("none", tmp_path, NO_HARNESS)
    with sandbox.run(request("import time\ntime.sleep(9)", [[0]], wall_factor=PATIENCE), 0.3) as running:
        assert next(running.reports()) == ProgramEnded("timeout")  # "starved" is said after PATIENCE times as long
    sandbox.close()


def test_a_call_that_has_not_slept_goes_on_until_it_has_computed_as_long(tmp_path: Path) -> None:
    sandbox = Sandbox.start("none", tmp_path, NO_HARNESS)
    with sandbox.run(request("def f(x):\n    while True: pass", [[0]], limit=0.2), 20) as running:
        report = next(running.reports())
        computed = seconds_of_all_threads(Path(f"/proc/{running.pid}/stat").read_text())
    sandbox.close()
    assert isinstance(report, CallReport)
    assert report.content == (COMPUTED if report.seconds < PATIENCE * 0.2 else WAITED)
    assert computed < 2 * 0.2


def test_the_time_in_which_its_own_threads_ran_is_no_wait_for_a_cpu() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    process = f"7 (a) b) R {'0 ' * 10}{ticks} {ticks // 2} 0 0"
    # It ran 1.5 s in all threads; the main thread ran 0.4 s of them and waited 2 s: 2 - (1.5 - 0.4).
    assert seconds_without_cpu("400000000 2000000000 99", process) == pytest.approx(0.9)
    assert seconds_without_cpu("1500000000 2000000000 99", process) == pytest.approx(2.0)
    assert seconds_without_cpu("100000 0 99", process) < 0


def test_a_program_whose_threads_take_its_cpu_is_less_starved_than_its_main_thread_waits(tmp_path: Path) -> None:
    code = "import hashlib, threading\ndef spin():\n    while True: hashlib.sha256(bytes(2**20))\n"
    code += "def f(x):\n    for _ in range(16): threading.Thread(target=spin, daemon=True).start()\n    spin()"
    sandbox = Sandbox.start("none", tmp_path, NO_HARNESS)
    with sandbox.run(request(code, [[0]], limit=0.3), 20) as running:
        next(running.reports())
        starved, waited = running.cpu_wait_seconds(), Path(f"/proc/{running.pid}/schedstat").read_text().split()[1]
    sandbox.close()
    assert starved < int(waited) / 1e9


def test_a_program_is_killed_before_its_judge_where_memory_runs_out(tmp_path: Path) -> None:
    own = Path("/proc/self/oom_score_adj").read_text()
    sandbox = Sandbox.start("none", tmp_path, NO_HARNESS)
    with sandbox.run(request("def f(x): return x", [[0]]), 20) as running:
        assert Path(f"/proc/{running.pid}/oom_score_adj").read_text() == "1000\n"
    sandbox.close()
    assert Path("/proc/self/oom_score_adj").read_text() == own


def test_a_tier_that_cannot_be_started_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="bubblewrap: no bwrap"):
        Sandbox.start("bubblewrap", tmp_path, NO_HARNESS)


def test_only_the_interpreter_its_packages_and_libraries_can_be_read() -> None:
    paths = readable_paths()
    assert not [path for path in paths if any(other in path.parents for other in paths)]
    assert Path.cwd() not in paths
    assert Path.home() not in paths
    assert not [path for path in paths if path in Path(__file__).resolve().parents]
