"""Temporary directories: gone at the end of a command, or removed by the next one."""

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
with scratch_directory() as directory:
    (directory / "left").mkdir()
    print(directory, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_temporary_directory_is_removed_at_the_end() -> None:
    with scratch_directory() as directory:
        assert [path.name for path in directory.iterdir()] == [LOCK]
        (directory / "file").touch()
    assert not directory.exists()


def test_the_directory_of_a_killed_command_is_removed_by_the_next_one_and_a_locked_one_stays() -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    directories = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
    holders[0].kill()
    holders[0].wait()
    assert all((directory / "left").is_dir() for directory in directories)
    try:
        with scratch_directory():
            assert [directory.exists() for directory in directories] == [False, True]
    finally:
        holders[1].send_signal(signal.SIGINT)
        for holder in holders:
            holder.communicate()
    assert not directories[1].exists()


def test_other_directories_and_files_are_kept(tmp_path: Path) -> None:
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
def test_the_directory_of_another_user_is_kept(tmp_path: Path) -> None:
    (theirs := tmp_path / "codetune-theirs").mkdir()
    (theirs / LOCK).touch()
    os.chown(theirs, 12345, 12345)
    with scratch_directory():
        assert theirs.exists()
