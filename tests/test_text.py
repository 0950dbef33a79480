"""Text of others on a terminal: what it would obey or hide is an escape, and words of any script stay whole."""

from __future__ import annotations

import pytest

from codetune.text import is_blank, visible


@pytest.mark.parametrize(
    "text", [*" \t\x00\u00a0\u00ad\u034f\u180e\u200b\u200d\u2060\u2800\u3164\ufe0f\ufeff\U000e0020", ""]
)
def test_a_text_of_characters_that_nobody_sees_is_blank(text: str) -> None:
    assert is_blank(f"{text}\n{text}")
    assert not is_blank(f"{text}x{text}")


@pytest.mark.parametrize("text", ["\u0e01", "\U0001f600", "\ue000", "0"])
def test_a_text_of_one_letter_or_picture_is_not_blank(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("a\x7fb\x00", r"a\x7fb\x00"),
        ("a\tb\r\n", r"a\tb\r\n"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("pass\u200bed \ufeff", r"pass\u200bed \ufeff"),
        ("pa\u200dss", r"pa\u200dss"),
        ("\u200c", r"\u200c"),
        ("a\u2028b", r"a\u2028b"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("x\u3164", r"x\u3164"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    "text", ["é ü 日本\u3000語", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "👨\u200d👩", "[bold]"]
)
def test_words_of_any_script_and_emoji_stay_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_characters_that_are_kept_stay() -> None:
    assert visible("a\n\tb\x1b", kept="\n\t") == "a\n\tb\\x1b"
