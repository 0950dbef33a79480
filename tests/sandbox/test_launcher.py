from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codetune.sandbox import program, serialization
from codetune.sandbox.launcher import CODE, Ended, Frame, Sandbox, SandboxError, Tier, readable_paths
from codetune.sandbox.program import Request
from tests.sandbox.tiers import each_tier


def test_bubblewraps_root_holds_all_of_ours_that_the_zygote_loads() -> None:
    program = (
        "import sys, codetune.sandbox.zygote\n"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'codetune'))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    held = {".".join(["codetune", *(part for part in name.split("/") if part)]) for name in CODE}
    assert set(loaded) <= held


def request(code: str, calls: list[list[object]], limit: float = 1.0) -> Request:
    return Request(code, "f", pickle.dumps(calls), (limit,) * len(calls), 1, 2**32, "value")


@each_tier("none")
def test_calls_come_back_one_by_one_with_their_time(tier: Tier, tmp_path: Path) -> None:
    sandbox = Sandbox.start(tier, tmp_path)
    code = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    with sandbox.run(request(code, [[0], [0.05]]), 20) as run:
        frames = run.frames()
        found = [next(frames), next(frames)]
    sandbox.close()
    assert all(isinstance(frame, Frame) and frame.kind == program.VALUE for frame in found)
    assert [serialization.decode(frame.content) for frame in found if isinstance(frame, Frame)] == [0, 0.05]
    assert isinstance(found[1], Frame)
    assert found[1].seconds >= 0.05


@each_tier("none")
def test_at_the_end_of_the_time_the_program_is_killed_and_the_next_one_runs(tier: Tier, tmp_path: Path) -> None:
    sandbox = Sandbox.start(tier, tmp_path)
    began = time.monotonic()
    with sandbox.run(request("while True: pass", [[0]]), 0.5) as run:
        assert next(run.frames()) == Ended("late")
        pid = run.pid
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - began < 10
    with sandbox.run(request("def f(x): return x", [[7]]), 20) as run:
        frame = next(run.frames())
    assert isinstance(frame, Frame)
    assert serialization.decode(frame.content) == 7
    sandbox.close()


def test_what_cannot_be_started_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="no bwrap"):
        Sandbox.start("bubblewrap", tmp_path)


def test_only_the_interpreter_its_packages_and_libraries_can_be_read() -> None:
    paths = readable_paths()
    assert not [path for path in paths if any(other in path.parents for other in paths)]
    assert Path.cwd() not in paths
    assert Path.home() not in paths
    assert not [path for path in paths if path in Path(__file__).resolve().parents]
