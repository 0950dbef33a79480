"""A conversation in the chat template that a tokenizer brings with it -> its text, and the characters that are learned.

No template is trusted: for each row it is shown where each answer stands in the template's own rendering, either by the
template's `{% generation %}` blocks, or by rendering prefixes of the conversation:

    up to an answer, with the prompt for it       <user>hi<assistant>
    with the answer, and nothing behind it        <user>hi<assistant>yo</s>
    all of it                                     <user>hi<assistant>yo</s><user>ho<assistant>ya</s>

The first must begin the third, and the second must agree with it up to behind the answer's EOS: only then is what the
model learns what it will be asked for. A message that the template leaves out is found by a second rendering, with a
tag in each message. A row for which one of these fails is refused with the reason. Makes no tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from jinja2.exceptions import TemplateError

from codetune.errors import ModelError, first_line
from codetune.limits import limited_memory, limited_time
from codetune.project.sections import ChatFormat, LearnedAnswers
from codetune.records import Message

CharacterSpan = tuple[int, int]  # [start, end)
Turn = dict[str, str]
TEMPLATE_SECONDS = 20.0  # for one conversation, which takes a template less than a millisecond
TEMPLATE_BYTES = 2**32  # room for the longest row in every form, and for what other threads take meanwhile
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
THE_TEMPLATE = "the tokenizer's chat template"
LEARN_LAST = "train.learn: last learns the last answer alone"
TAG = "Qd7k{}z"  # letters and digits, which no template changes, and no word of a language


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as text. The model is trained to write the characters of `answers`, each up to behind its EOS."""

    text: str
    answers: tuple[CharacterSpan, ...]


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that rendering uses."""

    @property
    def eos_token(self) -> object: ...

    @property
    def all_special_tokens(self) -> list[str]: ...

    @property
    def special_tokens_map(self) -> dict[str, str]: ...

    @property
    def chat_template(self) -> object: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(
        self, conversation: list[Turn], *, tokenize: bool, add_generation_prompt: bool
    ) -> object: ...


def render_by_tokenizer(
    messages: Sequence[Message], tokenizer: ChatTokenizer, learn: LearnedAnswers
) -> RenderedChat | str:
    """The conversation in the tokenizer's own template, or why it cannot be shown where the answers stand in it. Raises
    ModelError where there is no template, and where it closes no answer."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = apply_template(tokenizer, turns, add_generation_prompt=False)
        if left_out := _left_out(turns, tokenizer):
            return f"{THE_TEMPLATE} leaves out or rewrites a message of the role {left_out}"
        if isinstance(tokenizer.chat_template, str) and GENERATION.search(tokenizer.chat_template):
            spans = _marked_answers(turns, text, tokenizer)
        else:
            spans = _answers_by_prefixes(turns, text, tokenizer, learn)
    except TemplateError as error:
        return f"{THE_TEMPLATE} refuses it: {first_line(error)}"
    except ValueError as error:  # transformers raises it where there is no template
        raise ModelError(
            "The model's tokenizer has no chat template, and model.chat_format says `tokenizer`. Expected: an instruct "
            "model's tokenizer. Set model.chat_format to one of the families, such as deepseek"
        ) from error
    return spans if isinstance(spans, str) else RenderedChat(text, tuple(spans if learn == "all" else spans[-1:]))


def apply_template(tokenizer: ChatTokenizer, turns: list[Turn], *, add_generation_prompt: bool) -> str:
    """The turns in the tokenizer's own chat template. Raises TemplateError for turns that it refuses or fails on,
    ValueError (of transformers) without a template, ModelError for one that does not come to an end."""
    try:
        with limited_time(TEMPLATE_SECONDS, _endless_template), limited_memory(TEMPLATE_BYTES):
            return str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        raise TemplateError(f"{type(error).__name__}: {first_line(error)}") from error


def _endless_template() -> ModelError:
    return ModelError(
        f"The tokenizer's chat template has not finished one conversation in {TEMPLATE_SECONDS:.0f} seconds. Expected: "
        "milliseconds. Fix the template (chat_template.jinja or tokenizer_config.json), or set model.chat_format to a "
        "family"
    )


def _left_out(turns: Sequence[Turn], tokenizer: ChatTokenizer) -> str:
    """The role of the first message before the last that the template does not write; "" where it writes all."""
    tags = [TAG.format(index) for index in range(len(turns) - 1)]
    tagged = [{**turn, "content": turn["content"].rstrip() + tag} for turn, tag in zip(turns, tags, strict=False)]
    text = apply_template(tokenizer, [*tagged, turns[-1]], add_generation_prompt=False)
    return next((turn["role"] for turn, tag in zip(turns, tags, strict=False) if tag not in text), "")


def _answers_by_prefixes(
    turns: list[Turn], text: str, tokenizer: ChatTokenizer, learn: LearnedAnswers
) -> list[CharacterSpan] | str:
    """The answers that are learned, each from behind the prompt for it; or why they are not sure to be there."""
    spans: list[CharacterSpan] = []
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    for index in answers if learn == "all" else answers[-1:]:
        prompt = apply_template(tokenizer, turns[:index], add_generation_prompt=True)
        is_last = index == len(turns) - 1
        alone = text if is_last else apply_template(tokenizer, turns[: index + 1], add_generation_prompt=False)
        content = turns[index]["content"].strip()
        start = alone.find(content, len(prompt))
        if not alone.startswith(prompt):
            return f"{THE_TEMPLATE} does not begin an answer with its own prompt for one"
        if start < 0:
            return f"{THE_TEMPLATE} rewrites the answer"
        end = _end_of_answer(alone, start + len(content), _agreement(alone, text), tokenizer)
        if end is None and is_last:
            raise _never_closed()
        if end is None:
            return f"{THE_TEMPLATE} rewrites or does not close an answer when turns follow ({LEARN_LAST})"
        spans.append((len(prompt), end))
    return spans


def _agreement(one: str, other: str) -> int:
    """How many characters both begin with.

    >>> _agreement("abc", "abd")
    2
    """
    pairs = zip(one, other, strict=False)
    return len(one) if other.startswith(one) else next(index for index, (a, b) in enumerate(pairs) if a != b)


def _marked_answers(turns: list[Turn], text: str, tokenizer: ChatTokenizer) -> list[CharacterSpan] | str:
    """The answers in the template's `{% generation %}` blocks; or why they are not sure to be there. A block that does
    not hold the token that closes the answer is extended to it."""
    contents = [turn["content"].strip() for turn in turns if turn["role"] == "assistant"]
    rendered, marked = _generation_blocks(turns, tokenizer)
    if rendered != text or len(marked) != len(contents):
        return f"{THE_TEMPLATE} marks {len(marked)} answers by generation blocks, and the row has {len(contents)}"
    spans: list[CharacterSpan] = []
    for (start, end), content, limit in zip(marked, contents, _limits(marked, text), strict=True):
        found = text.find(content, start, end)
        if found < 0:
            return f"{THE_TEMPLATE} rewrites the answer"
        closed = _end_of_answer(text, found + len(content), limit, tokenizer)
        if closed is None or text[end:closed].strip() not in ("", *tokenizer.all_special_tokens):
            raise _never_closed()
        spans.append((start, max(end, closed)))
    return spans


def _limits(marked: Sequence[CharacterSpan], text: str) -> Iterator[int]:
    """For each block, where the next one begins."""
    yield from (start for start, _ in marked[1:])
    yield len(text)


def _generation_blocks(turns: list[Turn], tokenizer: ChatTokenizer) -> tuple[str, list[CharacterSpan]]:
    # Here, because it loads torch: `apply_chat_template` gives the blocks for its own tokens only, not the characters.
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template  # its types say less than it gives
    template, tokens = str(tokenizer.chat_template), tokenizer.special_tokens_map
    with limited_time(TEMPLATE_SECONDS, _endless_template), limited_memory(TEMPLATE_BYTES):
        (text,), (blocks,) = render([turns], chat_template=template, return_assistant_tokens_mask=True, **tokens)
    return text, blocks


def _end_of_answer(text: str, start: int, end: int, tokenizer: ChatTokenizer) -> int | None:
    """The index behind the first EOS between `start` and `end`, else behind the first special token there; None where
    there is neither."""
    eos = [] if tokenizer.eos_token is None else [str(tokenizer.eos_token)]
    for tokens in (eos, [token for token in tokenizer.all_special_tokens if token]):
        found = [(index, index + len(token)) for token in tokens if (index := text.find(token, start, end)) >= 0]
        if found:
            return min(found)[1]
    return None


def _never_closed() -> ModelError:
    families = ", ".join(name for name in get_args(ChatFormat) if name != "tokenizer")
    return ModelError(
        "The tokenizer's chat template closes an answer with no special token, so nothing would teach the model to "
        f"stop. Expected: its EOS behind every answer. Set model.chat_format to one of {families}, or fix the template."
    )
