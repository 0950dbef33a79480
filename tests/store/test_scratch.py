from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from codetune.store.scratch import LOCK, scratch_directory

HOLDER = """
import time
from codetune.store.scratch import scratch_directory
with scratch_directory() as place:
    (place / "left").mkdir()
    print(place, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_it_is_gone_at_the_end() -> None:
    with scratch_directory() as place:
        assert [path.name for path in place.iterdir()] == [LOCK]
        (place / "file").touch()
    assert not place.exists()


def test_what_a_killed_command_has_left_goes_with_the_next_one_and_what_is_held_stays() -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    places = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
    holders[0].kill()
    holders[0].wait()
    assert all((place / "left").is_dir() for place in places)
    try:
        with scratch_directory():
            assert [place.exists() for place in places] == [False, True]
    finally:
        holders[1].send_signal(signal.SIGINT)
        for holder in holders:
            holder.communicate()
    assert not places[1].exists()


def test_nothing_else_is_taken_for_abandoned(tmp_path: Path) -> None:
    (tmp_path / "codetune-mine").mkdir()  # without a lock
    (tmp_path / "codetune-file").touch()
    (other := tmp_path / "other").mkdir()
    (other / LOCK).touch()
    (tmp_path / "codetune-link").symlink_to(other)
    with scratch_directory():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "codetune-file",
        "codetune-link",
        "codetune-mine",
        "other",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give directories away")
def test_another_users_directory_is_left_alone(tmp_path: Path) -> None:
    (theirs := tmp_path / "codetune-theirs").mkdir()
    (theirs / LOCK).touch()
    os.chown(theirs, 12345, 12345)
    with scratch_directory():
        assert theirs.exists()
