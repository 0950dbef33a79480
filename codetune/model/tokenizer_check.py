"""Checks the steps of a tokenizer.json before a library runs them: forty steps that each double a letter make a text of
terabytes, in Rust, where no time limit reaches. What a step makes of a text is not tried but read off its settings."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def _steps(component: object) -> Iterator[Mapping[str, Any]]:
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


def _growth(step: Mapping[str, Any]) -> int:
    """The most characters that the step makes of one; normal forms of Unicode do not count, as they change nothing a
    second time."""
    growth = GROWTHS.get(step["type"])
    try:
        return max(1, growth(step)) if growth else 1
    except (AttributeError, KeyError, TypeError, ValueError):  # settings that the library refuses
        return 1


def _growth_of_replace(step: Mapping[str, Any]) -> int:
    replaced = step["pattern"].get("String", "")
    # A regular expression, or an empty text, also matches between two characters.
    return math.ceil(len(step["content"]) / len(replaced)) if replaced else len(step["content"]) + 1


def _longest_entry(step: Mapping[str, Any]) -> int:
    """Of the table of a SentencePiece normalizer: the size of its index, the index, and texts that end in a null."""
    table = base64.b64decode(step["precompiled_charsmap"])
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(len(text.decode(errors="replace")) for text in texts.split(b"\0"))


GROWTHS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "ByteLevel": lambda step: 4,  # a character for each byte
    "Precompiled": _longest_entry,
    "Prepend": lambda step: len(step["prepend"]),
    "Replace": _growth_of_replace,
}
