"""A JSONL file, gzipped or not -> its rows and where each stands. Knows nothing of what the rows mean.

A line that is not a JSON object is an error with its number: a damaged benchmark or samples file must not shrink.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codetune.errors import DataError
from codetune.text import lone_surrogate


def read_rows(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`FILE:LINE` and the object there, for every line that is not blank; `expected` says what the file should be."""
    for number, line in enumerate(_text_of(path, expected).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        # ValueError: besides JSONDecodeError, an integer of more digits than Python converts.
        except (ValueError, RecursionError) as why:
            raise DataError(f"{place}: not JSON ({why}). Expected: {expected}. Mend the line, or delete it.") from why
        if not isinstance(row, dict):
            raise DataError(
                f"{place}: {type(row).__name__} where a JSON object belongs. Expected: {expected}. Mend the line."
            )
        yield place, row


def require_unicode(place: str, key: str, text: str) -> None:
    """JSON can say half of a surrogate pair, which no file, terminal or tokenizer takes."""
    if (index := lone_surrogate(text)) is not None:
        raise DataError(
            f"{place}: {key} is {text[:60]!a}, which is no text: character {index + 1} is half of a surrogate "
            "pair. Expected: Unicode. Mend the line."
        )


def _text_of(path: Path, expected: str) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as why:
        # An OSError's own text repeats the path.
        reason = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
        raise DataError(
            f"{path} cannot be read ({reason}). Expected: {expected}, as UTF-8, plain or gzipped. Name another file."
        ) from why
