from __future__ import annotations

import time

import pytest

from codetune.benchmark.sanitize import sanitize
from codetune.data.thinking import HARMONY, thought_tokens, without_thinking
from codetune.records import Completion, Solution
from tests.benchmark.tasks import PROMPT, problem

FUNCTION = "def double(x):\n    return x + x"
DRAFT = "```python\ndef double(x):\n    y = x\n    y = y * 3\n    z = y\n    return z\n```"

ANALYSIS = "<|channel|>analysis<|message|>We need a.<|end|>"
COMMENTARY = "<|start|>assistant<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("<think>\na\n</think>\n\nb", "\n\nb"),
        ("<THINK>\na\n</think>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("<thinking>a <think> b </think> c</thinking>d", "d"),
        ("<think>a</think>b\n<think>c</think>d", "b\nd"),
        ("<think>a</think> <think>b</think>c", " c"),
        ("<seed:think>a</seed:think>b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("a\n<|end_of_thought|>\nb", "\nb"),
        ("<|START_THINKING|>a<|END_THINKING|>b", "b"),
        ("<|inner_prefix|>a<|inner_suffix|>b", "b"),
        ("<|channel>thought\na<channel|>b", "b"),
        ("<longcat_think>\na\n</longcat_think>\nb", "\nb"),
        (f"{ANALYSIS}{FINAL}b<|return|>", "b"),
        (
            f"{ANALYSIS}<|start|>assistant<|channel|>commentary to=f <|constrain|>json<|message|>{{}}<|call|>{FINAL}b",
            "b",
        ),
        (f"a<|end|>{FINAL}b", "b"),  # the prompt had opened the analysis
        (ANALYSIS, ""),
        ("<|channel|>final<|message|>b", "b"),
        ("analysisWe need a.assistantfinalb", "b"),  # from a decoder that leaves out special tokens
        ("analysis = 1", "analysis = 1"),
        ("t = '<|channel|>final<|message|>'\n say", "t = '<|channel|>final<|message|>'\n say"),
        ("<think>a<think>b</think>c\n</think>d", "d"),  # in each other
        ("a\n</think>\nb", "\nb"),  # the prompt had opened it
        ("a. So it is done.</think>\nb", "\nb"),
        ("b\n<think>\nthe tokens ran out", "b\n"),
        ("b = t.split('</think>')[0]", "b = t.split('</think>')[0]"),
        ("say `<think>` first", "say `<think>` first"),
        ("b", "b"),
        ("", ""),
    ],
)
def test_what_is_thought_is_no_part_of_the_answer(text: str, answer: str) -> None:
    assert without_thinking(text) == answer


@pytest.mark.parametrize("word", ["think", "thinking", "thought", "reasoning", "THINK"])
@pytest.mark.parametrize("form", [Solution, Completion])
def test_a_long_wrong_draft_in_a_thought_is_not_judged(word: str, form: type[Solution | Completion]) -> None:
    begin, end = ("[THINK]", "[/THINK]") if word == "THINK" else (f"<{word}>", f"</{word}>")
    text = f"{begin}\nMaybe:\n{DRAFT}\nNo.\n{end}\n```python\n{FUNCTION}\n```\n"
    assert sanitize(problem(), form("Own/0", text)).solution.solution == FUNCTION


def test_a_thought_that_is_not_closed_has_no_answer() -> None:
    text = f"<think>\n{DRAFT}"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == ""
    assert sanitize(problem(), Completion("Own/0", text)).solution.solution.strip() == PROMPT.strip()


def test_a_program_that_speaks_of_thoughts_stays_whole() -> None:
    text = "def double(x):\n    text = '''\n<think>\n'''\n    return x + x"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == text


def test_a_draft_in_the_analysis_of_gpt_oss_is_not_judged() -> None:
    text = f"<|channel|>analysis<|message|>Maybe:\n{DRAFT}\n<|end|>{FINAL}```python\n{FUNCTION}\n```<|return|>"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == FUNCTION


def test_the_tokens_around_thoughts_are_those_of_a_format_that_the_tokenizer_has_whole() -> None:
    assert thought_tokens({"<s>", "[THINK]", "[/THINK]", "<|end|>", "<|start|>"}) == {"[THINK]", "[/THINK]"}
    assert thought_tokens({*HARMONY, "<think>"}) == {*HARMONY}


@pytest.mark.parametrize(
    "text", ["<|end|><|channel|>a", "<|channel|>", "analysis", "<think>", "</think> ", "<think>\n</think>", "< think"]
)
def test_tags_without_end_are_read_once(text: str) -> None:
    began = time.process_time()
    without_thinking(text * 50_000)
    assert time.process_time() - began < 5
