"""Programs that misbehave: each gets its verdict, the run goes on, and nothing of them is left. Whether a verdict can
be forged is not asked here: in the sandbox "process" it can."""

from __future__ import annotations

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from codetune.benchmark.judge import judge
from codetune.records import Solution
from tests.benchmark.tasks import PROMPT, problem

GOOD = PROMPT + "    return 2 * x"
MARK = f"631.{os.getpid()}"  # seconds of a sleep that nobody else asks for

BODIES = {
    "exits": "import os; os._exit(0)",
    "exits_politely": "raise SystemExit",
    "prints_without_end": "\n    while True: print('x' * 1000)",
    "writes_to_the_terminal_without_end": "\n    import os\n    while True: os.write(1, b'x' * 99); os.write(2, b'y')",
    "reads_stdin": "return int(input()) + x",
    "reads_the_descriptor": "import os; return os.read(0, 1).decode() + x",
    "recurses": "return double(x)",
    "overflows_the_c_stack": "import sys; sys.setrecursionlimit(10**9); return double([x])",
    "bombs_the_memory": "return [0] * 10**11",
    "fills_the_memory": "\n    held = []\n    while True: held.append(bytearray(2**28))",
    "fills_the_disk": "\n    import io, os\n    f = io.open('big', 'wb')\n    while True: f.write(b'x' * 2**20)",
    "kills_its_judge": "import os, ctypes; ctypes.CDLL(None).kill(os.getppid(), 9)",
    "kills_its_group": "import os, ctypes; ctypes.CDLL(None).killpg(os.getpgrp(), 9)",
    "kills_itself": "import os, ctypes; ctypes.CDLL(None).kill(os.getpid(), 9)",
    "ignores_alarms": "\n    while True:\n        try:\n            while 1: pass\n        except BaseException: pass",
    "stops_itself": "import os, ctypes; ctypes.CDLL(None).kill(os.getpid(), 19)",
    "returns_what_cannot_be_compared": "\n    class C:\n        def __eq__(self, other): 1 / 0\n    return C()",
    "forks": "import os; os.fork()",
    "leaves_a_sleeper": f"import os; os.posix_spawn('/bin/sleep', ['sleep', '{MARK}'], {{}}); return 0",
    "leaves_a_daemon": (
        "import os; os.posix_spawn('/bin/sh', ['sh', '-c', "
        f"'setsid sh -c \"sleep {MARK} & exec sleep {MARK}\" & sleep 0.2'], {{}}); __import__('time').sleep(0.4)"
    ),
}


def sleepers() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if MARK in (process.info["cmdline"] or [])]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("expected")


def test_misbehaving_programs_fail_alone(expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    programs = [program for body in BODIES.values() for program in (f"def double(x): {body}", GOOD)]
    solutions = [Solution("Own/0", program, sample) for sample, program in enumerate(programs)]
    found = sorted(judge([problem()], solutions, expected, 1), key=lambda verdict: verdict.sample)
    assert [verdict.plus for verdict in found[1::2]] == ["pass"] * len(BODIES)
    outcomes = dict(zip(BODIES, found[::2], strict=True))
    assert [name for name, verdict in outcomes.items() if verdict.base not in ("fail", "timeout")] == []
    assert all(verdict.plus == verdict.base for verdict in outcomes.values())
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]
    assert not sleepers()


def test_files_go_to_a_scratch_directory(expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = "import io\nio.open('left.txt', 'w').write('x')\n" + GOOD
    [found] = judge([problem()], [Solution("Own/0", program)], expected, 1)
    assert found.plus == "pass"
    assert list(tmp_path.iterdir()) == []


def test_a_program_sees_no_environment_of_the_user(expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("EVALPLUS_TIMEOUT_PER_TASK", "1")  # evalplus 0.3.1 cannot compare it with a number
    program = PROMPT + "    import os\n    return None if 'HF_TOKEN' in os.environ else 2 * x"
    [found] = judge([problem()], [Solution("Own/0", program)], expected, 1)
    assert found.plus == "pass"


def test_a_users_own_module_does_not_stand_before_the_standard_library(
    expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    [found] = judge([problem()], [Solution("Own/0", GOOD)], expected, 1)
    assert found.plus == "pass"
