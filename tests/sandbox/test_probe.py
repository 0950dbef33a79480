from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from codetune.errors import CodetuneError
from codetune.sandbox.probe import LADDER, choose_tier, find_trouble


def test_without_a_sandbox_everything_is_found_open() -> None:
    trouble = find_trouble("none")
    assert trouble is not None
    for way in ("by TCP", "abstract socket", "read a file of the user", "make a file", "start a process", "signal the"):
        assert way in trouble


def test_the_strongest_that_works_is_chosen() -> None:
    working = [tier for tier in LADDER if find_trouble(tier) is None]
    if not working:
        pytest.skip("this machine has no sandbox")
    assert choose_tier("auto") == working[0]
    assert [choose_tier(tier) for tier in working] == working


def test_one_that_was_asked_for_and_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CodetuneError, match=r"Tried: bubblewrap: no bwrap on the path") as error:
        choose_tier("bubblewrap")
    assert error.value.exit_status == 1


def test_a_bubblewrap_that_confines_nothing_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that only runs its command: the files are then there, the root is not, and it ends in an error."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    trouble = find_trouble("bubblewrap")
    assert trouble is not None
    assert re.match("bubblewrap: ", trouble)


def test_none_is_none() -> None:
    assert choose_tier("none") == "none"
