"""What libraries log and warn of holds texts of others, such as the settings of a model: their control characters are
made visible in every message of this process, whichever handler writes it."""

from __future__ import annotations

import logging
import traceback
import warnings
from contextlib import suppress
from typing import Any

from codetune.text import visible

_format_warning = warnings.formatwarning


def make_messages_visible() -> None:
    logging.setLogRecordFactory(_visible_record)
    warnings.formatwarning = _visible_warning


def _visible_record(*values: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*values, **options)
    with suppress(TypeError, ValueError):  # of values that do not fit the message: logging reports them
        record.msg, record.args = visible(record.getMessage(), kept="\n\t"), ()
    if record.exc_info:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.exc_text = visible(trace, kept="\n")
    return record


def _visible_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return visible(_format_warning(message, category, filename, lineno, line), kept="\n")
