"""The answer of a model that thinks aloud first, without its thoughts.

Models write them between two tags, `PAIRS`, and drafts of the program stand in them. What is between an opening and a
closing tag is no part of the answer. Where only the closing tag is there, the prompt had the other one: all before it
is thought. Where only the opening one is, the tokens ran out before the answer: all behind it is thought. A tag counts
at the beginning or the end of a line; inside of a thought a closing tag counts anywhere.

gpt-oss writes channels instead (github.com/openai/harmony); the answer is what the channel `final` holds:

    <|channel|>analysis<|message|>We need ...<|end|><|start|>assistant<|channel|>final<|message|>def f(x): ...<|return|>
"""

from __future__ import annotations

import re
from collections.abc import Set

WORDS = ("think", "seed:think", "longcat_think", "thinking", "thought", "thoughts", "reasoning")
PAIRS = (
    *((f"<{word}>", f"</{word}>") for word in WORDS),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>", "<channel|>"),
)
TAG = re.compile("|".join(re.escape(tag) for pair in PAIRS for tag in pair), re.IGNORECASE)
BLANK = " \t\r"
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
HEADER = re.compile(
    r"(?:\A|<\|start\|>\w+|<\|end\|>)\s*<\|channel\|>\s*(\w+)[^\n<]*(?:<\|constrain\|>[^\n<]*)?<\|message\|>"
)
END = re.compile("|".join(map(re.escape, HARMONY)))
WITHOUT_TOKENS = re.compile(r"\s*(?:assistant)?analysis.*?assistantfinal", re.DOTALL)  # of the headers
# A tag in lower case -> the opening tag of its pair, and whether it is the closing one.
OPENING = {tag.lower(): (pair[0], tag == pair[1]) for pair in PAIRS for tag in pair}


def without_thinking(text: str) -> str:
    """The text without its thoughts; unchanged where it has no tag and no channel."""
    text = _final_channel(text)
    kept: list[str] = []
    begin, thinking = 0, ""
    for tag in TAG.finditer(text):
        opening, closes = OPENING[tag[0].lower()]
        if thinking:
            if closes and opening == thinking:
                begin, thinking = tag.end(), ""
        elif _is_at_a_line_end(text, begin, tag):
            if closes:
                kept.clear()
            else:
                kept.append(text[begin : tag.start()])
                thinking = opening
            begin = tag.end()
    return "".join(kept) + ("" if thinking else text[begin:])


def thought_tokens(special: Set[str]) -> frozenset[str]:
    """The special tokens of a tokenizer by which its model marks thoughts: without them a text does not show where they
    end."""
    return frozenset(tag for tags in (*PAIRS, HARMONY) if special >= {*tags} for tag in tags)


def opening_of_answer(conversation: str) -> str:
    """What has to stand between a conversation that ends with a generation prompt and the answer itself."""
    return "<|channel|>final<|message|>" if conversation.endswith("<|start|>assistant") else ""


def _final_channel(text: str) -> str:
    """What stands in the channel `final`; the text itself where it has no channels."""
    headers = list(HEADER.finditer(text))
    if not headers:
        return WITHOUT_TOKENS.sub("", text, count=1) if WITHOUT_TOKENS.match(text) else text
    finals = (header.end() for header in headers if header[1] == "final")
    return "".join(text[begin : end.start() if (end := END.search(text, begin)) else None] for begin in finals)


def _is_at_a_line_end(text: str, begin: int, tag: re.Match[str]) -> bool:
    """Whether nothing but blanks stands before the tag on its line, or since the tag that ended at `begin`, or nothing
    behind it."""
    before, behind = tag.start(), tag.end()
    while before > begin and text[before - 1] in BLANK:
        before -= 1
    while behind < len(text) and text[behind] in BLANK:
        behind += 1
    return before == begin or text[before - 1] == "\n" or behind == len(text) or text[behind] == "\n"
