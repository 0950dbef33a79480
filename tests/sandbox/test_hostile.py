"""Hostile programs in every tier that works on this machine: each gets its verdict, the honest programs between them
pass, nothing leaks, and nothing is left.

`CANARY` is what must not be seen; a program that finds it returns the right answer, and so would pass.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from codetune.benchmark import judge as judging
from codetune.benchmark import worker_pool
from codetune.benchmark.judge import JUDGE_BROKE, judge
from codetune.records import Problem, Solution, Verdict
from codetune.sandbox.tiers import TIERS
from tests.benchmark.tasks import PROMPT, problem
from tests.sandbox.hostile_programs import (
    BREAKS_ITS_JUDGE,
    FORGERIES,
    GOOD,
    HONEST,
    INTRUSIONS,
    NUISANCES,
    SHAPES_WITHOUT_NUMBERS,
    SLEEP_SECONDS,
)
from tests.sandbox.tiers import each_tier


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the user, outside of the sandbox."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "id_rsa").write_text("CANARY", encoding="utf-8")
    (directory / "id_rsa").chmod(0o600)
    return directory


@pytest.fixture
def port() -> Iterator[int]:
    """A server that answers, and an abstract socket, both of this process."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.bind(f"\0codetune-{os.getpid()}")
        yield server.getsockname()[1]


def sleepers() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if SLEEP_SECONDS in (process.info["cmdline"] or [])]


def judged(programs: dict[str, str], tier: str, outputs: Path, **values: object) -> dict[str, Verdict]:
    """The verdict on each program; an honest program runs after each, and passes. `outputs`: the
    directory of the expected outputs."""
    return judged_among({name: text.format(**values) for name, text in programs.items()}, task(), GOOD, tier, outputs)


def judged_among(programs: dict[str, str], asked: Problem, good: str, tier: str, outputs: Path) -> dict[str, Verdict]:
    texts = [text for program in programs.values() for text in (program, good)]
    solutions = [Solution("Own/0", text, sample) for sample, text in enumerate(texts)]
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    found = sorted(judge([asked], solutions, outputs, 2, tier), key=lambda verdict: verdict.sample)
    assert [verdict.plus for verdict in found[1::2]] == ["pass"] * len(programs)
    assert not {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert all(verdict.plus == verdict.base for verdict in found)
    return dict(zip(programs, found[::2], strict=True))


def task() -> Problem:
    return problem(base_input=[[1], [2]], plus_input=[])


def test_there_are_ninety_hostile_programs_at_least() -> None:
    assert len(FORGERIES) + len(INTRUSIONS) + len(NUISANCES) >= 90


@each_tier(and_none=True)
def test_no_program_passes_by_deceit(tier: str, tmp_path: Path, outside: Path) -> None:
    found = judged(FORGERIES, tier, tmp_path / "expected", outside=outside)
    assert [name for name, verdict in found.items() if verdict.base != "fail"] == []
    assert not (outside / "forged").exists()
    assert not Path("/tmp/codetune-forged").exists()


@each_tier(and_none=True)
def test_no_program_passes_by_the_shape_of_the_output_alone(tier: str, tmp_path: Path) -> None:
    right = "    return [x + 0.5, 1.5]"
    asked = problem(canonical_solution=right, base_input=[[1], [2]], plus_input=[])
    programs = {
        name: f"import numpy as np\ndef double(x): return {text}" for name, text in SHAPES_WITHOUT_NUMBERS.items()
    }
    found = judged_among(programs, asked, PROMPT + right, tier, tmp_path / "expected")
    assert [name for name, verdict in found.items() if verdict.base != "fail"] == []


@each_tier(and_none=False)
def test_no_program_escapes(
    tier: str, tmp_path: Path, outside: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "CANARY")
    values = {"outside": outside, "expected": tmp_path / "expected", "port": port, "judge": os.getpid()}
    found = judged(INTRUSIONS, tier, tmp_path / "expected", **values)
    assert [name for name, verdict in found.items() if verdict.base != "fail"] == []
    assert [path.name for path in outside.iterdir()] == ["id_rsa"]
    assert (outside / "id_rsa").read_text(encoding="utf-8") == "CANARY"
    assert (outside / "id_rsa").stat().st_mode & 0o777 == 0o600
    assert not sleepers()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of a second for a call instead of one, and for a run 1.3 s instead of 4: half of these programs end only
    when their time is up, and on a busy machine they are judged twice."""
    limits = "run_suite.DEFAULT_MIN_TIME_LIMIT, run_suite.GRACE_SECONDS = 0.3, 0.7"
    main = "from codetune.benchmark.worker_pool import serve"
    assert main in worker_pool.WORKER
    worker = worker_pool.WORKER.replace(main, f"from codetune.benchmark import run_suite; {limits}; {main}")
    monkeypatch.setattr(worker_pool, "WORKER", worker)
    monkeypatch.setattr(judging, "PATIENCE", 2)


@each_tier(and_none=False)
@pytest.mark.usefixtures("short_limits")
def test_no_program_breaks_the_run(tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    found = judged(NUISANCES, tier, tmp_path / "expected")
    assert [name for name, verdict in found.items() if verdict.base == "pass"] == []
    assert found["never_loads"].base == "timeout"
    assert [path.name for path in tmp_path.iterdir()] == ["expected"]
    assert threading.active_count() == threads


def test_a_program_that_breaks_its_judge_fails_alone(tmp_path: Path) -> None:
    solutions = [Solution("Own/0", text, sample) for sample, text in enumerate([GOOD, BREAKS_ITS_JUDGE, GOOD, GOOD])]
    with_another_run = problem(base_input=[[1], [2]], plus_input=[[3]])
    found = sorted(judge([with_another_run], solutions, tmp_path, 1, "none"), key=lambda verdict: verdict.sample)
    assert [verdict.base for verdict in found] == ["pass", "fail", "pass", "pass"]
    assert found[1].failure.startswith(JUDGE_BROKE), found[1].failure


@each_tier(and_none=True)
def test_an_honest_program_may_write_a_file_and_read_it_again(tier: str, tmp_path: Path) -> None:
    mechanisms = TIERS[tier].mechanisms
    if mechanisms and not mechanisms.scratch:
        pytest.skip("nothing can be written in this tier")
    program = "import io\ndef double(x):\n    io.open('f', 'w').write(str(2 * x))\n    return int(io.open('f').read())"
    [found] = judge([task()], [Solution("Own/0", program)], tmp_path, 1, tier)
    assert found.plus == "pass", found.failure


@each_tier(and_none=False)
def test_a_program_finds_no_file_of_the_one_before(tier: str, tmp_path: Path) -> None:
    writer = "import io\ntry: io.FileIO('left', 'w').write(b'x')\nexcept OSError: pass\n" + GOOD
    reader = "import os\ndef double(x): return None if os.path.exists('left') else 2 * x"
    solutions = [Solution("Own/0", text, sample) for sample, text in enumerate([writer, reader])]
    assert [verdict.plus for verdict in judge([task()], solutions, tmp_path, 1, tier)] == ["pass", "pass"]


@each_tier(and_none=False)
def test_honest_programs_find_what_they_need(tier: str, tmp_path: Path) -> None:
    solutions = [Solution("Own/0", text, sample) for sample, text in enumerate(HONEST.values())]
    found = sorted(judge([task()], solutions, tmp_path, 2, tier), key=lambda verdict: verdict.sample)
    failures = {name: verdict.failure for name, verdict in zip(HONEST, found, strict=True) if verdict.failure}
    # sympy takes longer to import than the second that EvalPlus gives on a busy machine; loading is not in that second.
    assert failures == {}


def test_a_module_of_the_user_does_not_hide_one_of_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    [found] = judge([task()], [Solution("Own/0", GOOD)], tmp_path / "expected", 1, "none")
    assert found.plus == "pass"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become an ordinary user")
def test_a_tier_works_for_an_ordinary_user_too() -> None:
    program = (
        "import os; os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "from codetune.sandbox.probe import CONFINING_TIERS, find_failure\n"
        "found = {tier: find_failure(tier) for tier in CONFINING_TIERS}\nassert None in found.values(), found\n"
    )
    readable = os.access(sys.executable, os.X_OK) and Path(sys.base_prefix).parts[:2] != ("/", "root")
    if not readable:
        pytest.skip("this interpreter lies in root's own directory")
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")
