"""A task -> what the model is given: the raw prompt for base models, a chat turn for instruct models (method.md,
section 3). Tokenises, so that a BOS stands at most once: the tokenizer puts it before a raw prompt, the chat template
before its own text. Does not decide which of the two a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jinja2.exceptions import TemplateError

from codetune.errors import ModelError
from codetune.records import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where a raw completion leaves the function, as EvalPlus cuts base models.
STOPS = ("\nif __name__", "\ndef main(", "\nprint(", "\nassert")
STOPS_IN_FUNCTION = ("\ndef ", "\nclass ", "\nimport ", "\nfrom ")  # the prompt has opened the function (HumanEval)
STOPS_AFTER_DESCRIPTION = ('\n"""',)  # the function is still to come (MBPP)
FENCE = "```python\n"
STOPS_IN_FENCE = ("\n```",)


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: tuple[int, ...]  # with BOS, where the model has one
    stops: tuple[str, ...]  # the completion ends before the first of them


def make_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, kind: Literal["completion", "chat"]) -> Prompt:
    if kind == "chat":
        # The template has written the special tokens already: the tokenizer must not add a second BOS.
        tokens = tokenizer(chat_text(problem, tokenizer), add_special_tokens=False)["input_ids"]
        return Prompt(tuple(tokens), STOPS_IN_FENCE)
    return Prompt(tuple(tokenizer(raw_prompt(problem.prompt))["input_ids"]), completion_stops(problem))


def raw_prompt(prompt: str) -> str:
    """Without blanks around it, but for the line break that it ends with, as evalplus 0.3.1 gives it to base models.

    >>> raw_prompt("\\n\\ndef f(x):\\n    ")
    'def f(x):\\n'
    """
    text = prompt.strip()
    return text + "\n" if "\n" in prompt[len(prompt.rstrip()) :] else text


def completion_stops(problem: Problem) -> tuple[str, ...]:
    """By the shape of the prompt, so that a user's own tasks of either shape are cut rightly."""
    opened = f"def {problem.entry_point}(" in problem.prompt
    return STOPS + (STOPS_IN_FUNCTION if opened else STOPS_AFTER_DESCRIPTION)


def instruction(problem: Problem) -> str:
    """What an instruct model is asked."""
    return (
        f"Write the Python function `{problem.entry_point}` that solves the task below. Answer with one Markdown code "
        f"block that holds the whole function and the imports it needs.\n\n{FENCE}{problem.prompt.strip()}\n```"
    )


def chat_text(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation up to the code: the model's answer has begun with an open fence."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template. Expected: an instruct model's tokenizer. "
            "For a base model say: --base"
        )
    turns: Sequence[dict[str, str]] = [{"role": "user", "content": instruction(problem)}]
    try:
        asked = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except TemplateError as why:
        raise ModelError(
            f"The chat template of {tokenizer.name_or_path} refuses a single user turn ({why}). Expected: one that "
            "writes it. Mend the template, or say: --base"
        ) from why
    return f"{asked}{FENCE}"
