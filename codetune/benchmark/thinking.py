"""The answer of a model that thinks aloud first, without its thoughts.

Models write them between tags, `<think>` or another word, and drafts of the program stand in them. What is between an
opening and a closing tag is no part of the answer. Where only the closing tag is there, the prompt had the other one:
all before it is thought. Where only the opening one is, the tokens ran out before the answer: all behind it is thought.
A tag counts at the beginning or the end of a line; inside of a thought a closing tag counts anywhere.
"""

from __future__ import annotations

import re

WORDS = "think|seed:think|thinking|thought|thoughts|reasoning"
TAG = re.compile(rf"</?(?:{WORDS})>|\[/?THINK\]|◁/?think▷|<\|(?:begin|end)_of_thought\|>", re.IGNORECASE)
AROUND_THE_WORD = re.compile(r"[^a-z:_]|begin|end")
BLANK = " \t\r"


def without_thinking(text: str) -> str:
    """The text without its thoughts; unchanged where it has no tag."""
    kept: list[str] = []
    begin, thinking = 0, ""
    for tag in TAG.finditer(text):
        whole = tag[0].lower()
        word, closes = AROUND_THE_WORD.sub("", whole), whole[1] == "/" or whole.startswith("<|end")
        if thinking:
            if closes and word == thinking:
                begin, thinking = tag.end(), ""
        elif _is_at_a_line_end(text, begin, tag):
            if closes:
                kept.clear()
            else:
                kept.append(text[begin : tag.start()])
                thinking = word
            begin = tag.end()
    return "".join(kept) + ("" if thinking else text[begin:])


def _is_at_a_line_end(text: str, begin: int, tag: re.Match[str]) -> bool:
    """Whether nothing but blanks stands before the tag on its line, or since the tag that ended at `begin`, or nothing
    behind it."""
    before, behind = tag.start(), tag.end()
    while before > begin and text[before - 1] in BLANK:
        before -= 1
    while behind < len(text) and text[behind] in BLANK:
        behind += 1
    return before == begin or text[before - 1] == "\n" or behind == len(text) or text[behind] == "\n"
