"""Never a row lost: dozens of ends at random moments, and after them the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_world import make_small_world


@pytest.mark.parametrize(("stage", "accidents"), [("score", 20), ("embed", 4)])
def test_after_dozens_of_accidents_the_bytes_are_those_of_a_calm_run(
    stage: str, accidents: int, tmp_path: Path
) -> None:
    project = make_small_world(tmp_path, 60)
    command = [sys.executable, "-m", "tests.killing", str(project), stage, str(accidents), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert sum(told["accidents"].values()) >= accidents
    assert told["accidents"]["kill"] > 0
    assert len(told["digests"]) > 1
    assert set(told["digests"]) == {told["digests"][0]}
