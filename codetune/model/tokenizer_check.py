"""Checks the steps of a tokenizer.json before a library runs them: forty steps that each double a letter make a text of
terabytes, in Rust, where no time limit reaches. What a step makes of a text is not tried but read off its settings."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from codetune.errors import ModelError
from codetune.model.file_check import VOCABULARY_BYTES

COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_GROWTH = 1000  # of a text, by all steps of a component together; those of real tokenizers stay below 100
MOST_STEPS = 1000


def require_bounded_steps(directory: Path) -> None:
    """Raises ModelError for a tokenizer.json whose steps are too many, or make too much of a text. One that cannot be
    read is left to its library."""
    path = directory / "tokenizer.json"
    if not path.is_file() or path.stat().st_size > VOCABULARY_BYTES:
        return
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    for name in COMPONENTS if isinstance(content, dict) else ():
        steps = list(_steps(content.get(name)))
        growth = math.prod(map(_growth, steps))
        if len(steps) > MOST_STEPS or growth > MOST_GROWTH:
            raise ModelError(
                f"{path}: the {len(steps):,} steps of its {name} can make a text {growth:.3g} times as long. Expected: "
                f"{MOST_STEPS:,} steps and {MOST_GROWTH:,} times at most. Copy the file again from its source."
            )


def _steps(component: object) -> Iterator[Mapping[str, object]]:
    """The component itself and all steps inside it, at every depth."""
    waiting = [component]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
            if isinstance(value.get("type"), str):
                yield value
        elif isinstance(value, list):
            waiting.extend(value)


def _growth(step: Mapping[str, object]) -> int:
    """The most characters that the step makes of one; 1 for settings that the library refuses. Normal forms of Unicode
    do not count, as they change nothing a second time."""
    match step:
        case {"type": "ByteLevel"}:
            return 4  # a character for each byte
        case {"type": "Prepend", "prepend": str(text)}:
            return max(1, len(text))
        case {"type": "Replace", "pattern": {"String": str(replaced)}, "content": str(text)} if replaced:
            return max(1, math.ceil(len(text) / len(replaced)))
        case {"type": "Replace", "pattern": dict(), "content": str(text)}:
            return len(text) + 1  # a regular expression, or an empty text, also matches between two characters
        case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
            with suppress(ValueError):
                return max(1, _longest_entry(base64.b64decode(table)))
    return 1


def _longest_entry(table: bytes) -> int:
    """The longest text in the table of a SentencePiece normalizer: the size of its index, the index, and texts that end
    in a null."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(len(text.decode(errors="replace")) for text in texts.split(b"\0"))
