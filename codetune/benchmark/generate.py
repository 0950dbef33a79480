"""Tasks -> prompts -> what a model writes for them, one sample at a time.

A base model continues the raw prompt, an instruct model answers a chat turn (docs/method.md, section 3); which of the
two a model gets is decided by the caller, and what is asked stands in the record of the benchmark (`benchmarks.py`).
The longest prompts go first, so that batches are of about equal length and a machine that is too small for the work
fails at once. The network is behind `Decoder`; samples that exist already are left out by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jinja2.exceptions import TemplateError

from codetune.benchmark.benchmarks import FENCE, spec_of
from codetune.data.control_tokens import UNREADABLE, control_tokens
from codetune.data.own_template import apply_template
from codetune.data.thinking import opening_of_answer
from codetune.errors import ModelError
from codetune.model.decoding import Decoder, GenerationRequest
from codetune.project.sections import Generation
from codetune.records import Completion, Problem, Solution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STOPS_IN_FENCE = ("\n```",)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the model for a task."""

    tokens: tuple[int, ...]  # with BOS, where the model has one; none where it cannot be tokenized
    stops: tuple[str, ...]  # the completion ends before the first of them


@dataclass(frozen=True, slots=True)
class GeneratedSample:
    """A sample with its number of tokens; `truncated` where the token limit has cut it. A task whose prompt the model
    cannot take has an empty program, which no test passes, and the reason."""

    sample: Completion | Solution
    tokens: int
    truncated: bool
    refused: str = ""


def generate(
    work: Sequence[tuple[Problem, int]],
    tokenizer: PreTrainedTokenizerBase,
    decoder: Decoder,
    settings: Generation,
    seed: int,
) -> Iterator[GeneratedSample]:
    """Yields every sample as it is finished. `work` is a task and the number of the sample, each; `settings.prompt` has
    been decided (not `auto`). A raw prompt's continuation is a `Completion`, a chat answer a `Solution` that still has
    to be sanitized: the two forms of EvalPlus. Raises ModelError where the tokenizer cannot chat."""
    kind = settings.prompt
    assert kind != "auto"
    prompts = {problem.task_id: make_prompt(problem, tokenizer, kind) for problem, _ in work}
    # Ties by id, so that the batches do not depend on the order of the file.
    ordered = sorted(work, key=lambda item: (-len(prompts[item[0].task_id].tokens), item[0].task_id, item[1]))
    requests = [
        GenerationRequest(
            prompts[problem.task_id].tokens, prompts[problem.task_id].stops, random_stream(seed, problem, number)
        )
        for problem, number in ordered
    ]
    refused = [UNREADABLE if not request.prompt else decoder.refusal(request) for request in requests]
    for (problem, number), reason in zip(ordered, refused, strict=True):
        if reason:
            yield GeneratedSample(Solution(problem.task_id, "", number), 0, False, reason)
    asked = [index for index, reason in enumerate(refused) if not reason]
    record = Solution if kind == "chat" else Completion
    for position, written in decoder.complete([requests[index] for index in asked]):
        problem, number = ordered[asked[position]]
        yield GeneratedSample(record(problem.task_id, written.text, number), written.tokens, written.truncated)


def random_stream(seed: int, problem: Problem, number: int) -> str:
    """The name of a sample's random numbers: it depends on nothing but the seed, the task and the sample's number."""
    return f"{seed}/{problem.task_id}/{number}"


def make_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, kind: Literal["completion", "chat"]) -> Prompt:
    """Tokenizes the prompt of a task, with one BOS at most: the tokenizer adds it to a raw prompt, the chat template to
    its own text. Raises ModelError where the tokenizer has no chat template that takes a single user turn."""
    if kind == "chat":
        return Prompt(_tokens(tokenizer, chat_text(problem, tokenizer), add_special_tokens=False), STOPS_IN_FENCE)
    prompt = control_tokens(tokenizer).mark(raw_prompt(problem.prompt))
    stops = spec_of(problem.task_id).stop_strings(problem)
    return Prompt(_tokens(tokenizer, prompt, add_special_tokens=True), stops)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> tuple[int, ...]:
    (encoded,) = control_tokens(tokenizer).encode([text], add_special_tokens)
    return () if encoded is None else tuple(encoded.ids)


def raw_prompt(prompt: str) -> str:
    """Without whitespace around it, but for the line break that it ends with, as evalplus 0.3.1 gives it to base
    models.

    >>> raw_prompt("\\n\\ndef f(x):\\n    ")
    'def f(x):\\n'
    """
    text = prompt.strip()
    return text + "\n" if "\n" in prompt[len(prompt.rstrip()) :] else text


def chat_text(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation up to the code: the model's answer begins with an open Markdown fence. Control tokens that are
    written out in the task are marked."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template. Expected: an instruct model's tokenizer. "
            "For a base model say: --base"
        )
    instruction = control_tokens(tokenizer).mark(spec_of(problem.task_id).instruction(problem))
    try:
        conversation = apply_template(tokenizer, [{"role": "user", "content": instruction}], add_generation_prompt=True)
    except TemplateError as why:
        raise ModelError(
            f"The chat template of {tokenizer.name_or_path} refuses a single user turn ({why}). Expected: a template "
            "that writes it. Fix the template, or say: --base"
        ) from why
    return f"{conversation}{opening_of_answer(conversation)}{FENCE}"
