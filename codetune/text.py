"""Text of others: whether it can be written as UTF-8 (command lines, project files, data files, benchmarks), and how
its control characters are shown on a terminal; and days, times, rates and bytes as messages write them.

Imports nothing of codetune, because the command line needs it before anything else is loaded."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable

_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)")  # an underline inside a word is none
_NOT_PLAIN = re.compile("[^ -~]")
# Controls (terminal escapes begin with one), formats (bidirectional, zero width), halves of pairs, line separators.
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_HIDDEN_LETTERS = "\u115f\u1160\u3164\uffa0"  # fillers of Hangul: letters without a shape
# Other characters without a shape of their own: joiners, vowel signs, variation selectors, the empty braille pattern.
_SHAPELESS = re.compile("[\u034f\u17b4\u17b5\u180b-\u180f\u2065\u2800\ufe00-\ufe0f\ufff0-\ufff8\U000e0000-\U000e0fff]")
_JOINERS = "\u200c\u200d"  # belong to words of many scripts and to emoji; beside ASCII, or at an end, they only hide


def lone_surrogate(text: str) -> int | None:
    """The index of the first character that is half of a surrogate pair; None for a text that can be written as UTF-8.

    JSON and file names can hold such a character; no tokenizer, terminal or UTF-8 file takes it.

    >>> lone_surrogate("grün"), lone_surrogate("a\\ud800")
    (None, 1)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen: it is empty, or white space, controls and characters without a shape.

    >>> is_blank(" \\n\u200b\ufeff"), is_blank("\u200bx")
    (True, False)
    """
    return not any(_is_seen(character) for character in text)


def _is_seen(character: str) -> bool:
    if character.isascii():
        return character.isprintable() and character != " "
    is_hidden = unicodedata.category(character) in (*_HIDDEN_CATEGORIES, "Zs") or character in _HIDDEN_LETTERS
    return not is_hidden and not _SHAPELESS.match(character)


def visible(text: str, kept: str = "") -> str:
    """`text` with every character that a terminal would obey or hide, instead of showing it, as an escape; those of
    `kept` stay.

    >>> visible("a\\x1b[2Jb\\u202e")
    'a\\\\x1b[2Jb\\\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return _NOT_PLAIN.sub(lambda found: _shown(found) if found[0] not in kept else found[0], text)


def _shown(found: re.Match[str]) -> str:
    character, at, text = found[0], found.start(), found.string
    if character in _JOINERS:
        hides = text[at - 1 : at].isascii() or text[at + 1 : at + 2].isascii()  # an empty text is ASCII
    else:
        hides = unicodedata.category(character) in _HIDDEN_CATEGORIES or character in _HIDDEN_LETTERS
    return character.encode("unicode_escape").decode() if hides else character


def markdown(text: str) -> str:
    """`text` as a part of a line of Markdown that shows it as it is: markup and HTML are escaped, and so is what is
    hidden.

    >>> markdown("a_b|*c*")
    'a_b\\\\|\\\\*c\\\\*'
    """
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def day(moment: time.struct_time) -> str:
    """A day, for messages.

    >>> day(time.strptime("2026-11-21 09:30:00", "%Y-%m-%d %H:%M:%S"))
    '21 November 2026'
    """
    return f"{moment.tm_mday} {time.strftime('%B %Y', moment)}"


def duration(seconds: float) -> str:
    """A time of some seconds to many hours, as short as one reads it.

    >>> duration(42.0), duration(1740.0), duration(93_780.0)
    ('42 s', '29 min', '26 h 3 min')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def rate(speed: float, unit: str) -> str:
    """Units per second; of slow ones, seconds per unit.

    >>> rate(1234.5, "row"), rate(0.02, "step")
    ('1,234.5 rows/s', '50 s per step')
    """
    return f"{speed:,.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:,.0f} s per {unit}"


def gigabytes(count: float) -> str:
    """A number of bytes, in billions of them; small ones with more digits.

    >>> gigabytes(41_500_000_000), gigabytes(3_200_000)
    ('41.5 GB', '0.003 GB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e9:.3f} GB"


def setting_text(value: object, show: Callable[[object], str] = repr) -> str:
    """The value of a setting for a message: nothing and truth values as the project file has them.

    >>> setting_text(None), setting_text(True), setting_text("lora"), setting_text(0.4, str)
    ('null', 'true', "'lora'", '0.4')
    """
    return json.dumps(value) if value is None or isinstance(value, bool) else show(value)
