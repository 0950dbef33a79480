from __future__ import annotations

import logging
import re
import warnings

import pytest

from codetune.launch.library_messages import make_messages_visible


def test_what_libraries_log_and_warn_of_obeys_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # given back after the test
    before = logging.getLogRecordFactory()
    make_messages_visible()
    record, form = logging.getLogRecordFactory(), logging.Formatter().format
    logging.setLogRecordFactory(before)
    try:
        raise KeyError("\x9b2J")
    except KeyError as error:
        failed = record("a", logging.ERROR, "a.py", 1, "failed", (), (KeyError, error, error.__traceback__))
    told = [
        form(record("a", logging.WARNING, "a.py", 1, "%s is not\nknown", ("\x1b]0;name\x07",), None)),
        form(failed),
        warnings.formatwarning("an old \u202ekey", UserWarning, "a.py", 1, ""),
    ]
    assert told[0] == "\\x1b]0;name\\x07 is not\nknown"
    assert told[1].endswith("KeyError: '\\x9b2J'")
    assert told[2] == "a.py:1: UserWarning: an old \\u202ekey\n"
    assert not re.search("[\x1b\x07\x9b\u202e]", "".join(told))
