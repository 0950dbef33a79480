"""The nouns: ids that anybody can compute again, and records that nobody edits."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.records import Example, Message, Refusal, content_id

CONVERSATION = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yo"))


def test_an_id_is_the_digest_of_the_canonical_json() -> None:
    # Written by hand: keys sorted, no blanks, everything beyond ASCII escaped.
    canonical = rb'[{"content":"\u00e9 \ud83d\ude00","role":"user"},{"content":"a\n\"b\"","role":"assistant"}]'
    messages = [Message("user", "é 😀"), Message("assistant", 'a\n"b"')]
    assert content_id(messages) == hashlib.sha256(canonical).hexdigest()[:16]


@given(st.lists(st.text(max_size=3), min_size=1, max_size=3), st.lists(st.text(max_size=3), min_size=1, max_size=3))
def test_two_conversations_have_one_id_only_where_they_are_the_same(first: list[str], second: list[str]) -> None:
    ids = [content_id([Message("user", text) for text in texts]) for texts in (first, second)]
    assert (ids[0] == ids[1]) == (first == second)


def test_roles_are_part_of_the_id() -> None:
    assert content_id([Message("user", "a")]) != content_id([Message("assistant", "a")])


def test_the_instruction_is_every_turn_before_the_answer() -> None:
    example = Example("0", CONVERSATION, "a.jsonl:1")
    assert (example.instruction, example.answer) == ("Be brief.\n\nHi", "Yo")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("duplicate of a.jsonl:3", "duplicate"),
        ("duplicate of a of b.jsonl:3", "duplicate"),
        ("empty answer", "empty answer"),
        ("out of memory", "out of memory"),
    ],
)
def test_refusals_are_counted_without_the_place_of_the_original(reason: str, kind: str) -> None:
    assert Refusal(None, reason, "a.jsonl:9").kind == kind


def test_records_are_never_edited() -> None:
    with pytest.raises(FrozenInstanceError):
        CONVERSATION[0].content = "x"  # type: ignore[misc]
