from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from codetune.errors import CodetuneError
from codetune.sandbox.probe import CONFINING_TIERS, choose_tier, find_failure


def test_without_a_sandbox_every_attempt_to_escape_succeeds() -> None:
    failure = find_failure("none")
    assert failure is not None
    attempts = ("by TCP", "abstract socket", "read a file of the user", "make a file", "start a process", "signal the")
    assert [attempt for attempt in attempts if attempt not in failure] == []


def test_the_strongest_tier_that_works_is_chosen() -> None:
    working = [tier for tier in CONFINING_TIERS if find_failure(tier) is None]
    if not working:
        pytest.skip("this machine has no sandbox")
    assert choose_tier("auto") == working[0]
    assert [choose_tier(tier) for tier in working] == working


def test_a_tier_that_was_asked_for_and_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CodetuneError, match=r"Tried: bubblewrap: no bwrap on the path") as error:
        choose_tier("bubblewrap")
    assert error.value.exit_status == 1


def test_a_bubblewrap_that_confines_nothing_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bwrap that only runs its command: there is no new root, so the zygote ends in an error."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    failure = find_failure("bubblewrap")
    assert failure is not None
    assert re.match("bubblewrap: ", failure)


def test_the_tier_none_is_not_probed() -> None:
    assert choose_tier("none") == "none"
