"""A conversation in the chat template that a tokenizer brings with it -> its text, and the characters that are learned.

No template is trusted: for each row it is shown where each answer stands in the template's own rendering, either by the
template's `{% generation %}` blocks, or by rendering prefixes of the conversation:

    up to an answer, with the prompt for it       <user>hi<assistant>
    with the answer, and nothing behind it        <user>hi<assistant>yo</s>
    all of it                                     <user>hi<assistant>yo</s><user>ho<assistant>ya</s>

The first must begin the third, and the second must agree with it up to behind the answer's EOS: only then is what the
model learns what it will be asked for. A message, call or tool that the template leaves out is found by a second
rendering, with a tag in each of them. A row that fails is refused with its reason. In every template it is the same
day. Makes no tokens."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import compress
from typing import Any, Protocol, get_args

from jinja2.exceptions import TemplateError

from codetune.errors import ModelError, first_line
from codetune.limits import limited_memory, limited_time
from codetune.project.sections import ChatFormat, LearnedAnswers
from codetune.records import Message, MessageDocument

CharacterSpan = tuple[int, int]  # [start, end)
Tools = list[dict[str, object]]
TEMPLATE_SECONDS = 20.0  # for one conversation, which takes a template less than a millisecond
TEMPLATE_BYTES = 2**32  # room for the longest row in every form, and for what other threads take meanwhile
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
THE_TEMPLATE = "the tokenizer's chat template"
LEARN_LAST = "train.learn: last learns the last answer alone"
# The day that a template writes as today's, so that a text does not change overnight: Llama 3.1's template has it where
# it is told none.
DAY = date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
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
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template gets."""

    turns: list[MessageDocument]
    tools: Tools

    def render(self, tokenizer: ChatTokenizer, turns: int | None = None, *, prompt: bool = False) -> str:
        """The first `turns` turns, or all, with the prompt for an answer if so. Raises as `apply_template`."""
        return apply_template(tokenizer, self.turns[:turns], add_generation_prompt=prompt, tools=self.tools)


def render_by_tokenizer(
    messages: Sequence[Message], tokenizer: ChatTokenizer, learn: LearnedAnswers, tools: str
) -> RenderedChat | str:
    """The conversation in the tokenizer's own template, or why it cannot be shown where the answers stand in it.
    `tools` is the JSON text of their list, or "". Raises ModelError where there is no template, and where it closes no
    answer."""
    # A template writes the same whether a turn is learned or not: it gets no weights.
    turns = [replace(message, learned=True).document for message in messages]
    conversation, learned = Conversation(turns, json.loads(tools or "[]")), learned_answers(messages, learn)
    try:
        text = conversation.render(tokenizer)
        if left_out := _left_out(conversation, tokenizer):
            return f"{THE_TEMPLATE} leaves out or rewrites {left_out}"
        if isinstance(tokenizer.chat_template, str) and GENERATION.search(tokenizer.chat_template):
            marked = _marked_answers(conversation, text, tokenizer)
            spans = marked if isinstance(marked, str) else [*compress(marked, learned)]
        else:
            spans = _answers_by_prefixes(conversation, text, tokenizer, learned)
    except TemplateError as error:
        return f"{THE_TEMPLATE} refuses it: {first_line(error)}"
    except ValueError as error:  # transformers raises it where there is no template
        raise ModelError(
            "The model's tokenizer has no chat template, and model.chat_format says `tokenizer`. Expected: an instruct "
            "model's tokenizer. Set model.chat_format to one of the families, such as deepseek"
        ) from error
    return spans if isinstance(spans, str) else RenderedChat(text, tuple(spans))


def learned_answers(messages: Sequence[Message], learn: LearnedAnswers) -> list[bool]:
    """Of each answer, whether the model is trained to write it: all but those with the weight 0, or the last alone."""
    learned = [message.learned for message in messages if message.role == "assistant"]
    return learned if learn == "all" else [*(False for _ in learned[1:]), *learned[-1:]]


def apply_template(
    tokenizer: ChatTokenizer, turns: list[MessageDocument], *, add_generation_prompt: bool, tools: Tools | None = None
) -> str:
    """The turns in the tokenizer's own chat template. Raises TemplateError for turns that it refuses or fails on,
    ValueError (of transformers) without a template, ModelError for one that does not come to an end."""
    render: Any = tokenizer.apply_chat_template
    options = {"add_generation_prompt": add_generation_prompt, **({"tools": tools} if tools else {})}
    if isinstance(tokenizer.chat_template, str):
        options["chat_template"] = _on_one_day(tokenizer.chat_template)
    try:
        with limited_time(TEMPLATE_SECONDS, _endless_template), limited_memory(TEMPLATE_BYTES):
            return str(render(turns, tokenize=False, **options))
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        raise TemplateError(f"{type(error).__name__}: {first_line(error)}") from error


def _on_one_day(template: str) -> str:
    """The template with DAY in the place of today.

    >>> _on_one_day("{{ strftime_now('%d %b %Y') }}")
    '{{ "26 Jul 2024" }}'
    """
    return TODAY.sub(lambda call: json.dumps(DAY.strftime(call[2])), template)


def _endless_template() -> ModelError:
    return ModelError(
        f"The tokenizer's chat template has not finished one conversation in {TEMPLATE_SECONDS:.0f} seconds. Expected: "
        "milliseconds. Fix the template (chat_template.jinja or tokenizer_config.json), or set model.chat_format to a "
        "family"
    )


def _left_out(conversation: Conversation, tokenizer: ChatTokenizer) -> str:
    """The first thing that the template does not write, tools before messages; "" where it writes all. The content of
    the last turn is looked for elsewhere."""
    tags: dict[str, str] = {}

    def tag(thing: str) -> str:
        tags[new := TAG.format(len(tags))] = thing
        return new

    tools = [_tagged(tool, ("parameters", "properties"), lambda: tag("tools")) for tool in conversation.tools]
    turns: list[MessageDocument] = []
    for turn in conversation.turns:
        calls = [_tagged(call, ("arguments",), lambda: tag("tool calls")) for call in turn.get("tool_calls", ())]
        is_tagged = turn["content"].strip() and turn is not conversation.turns[-1]
        content = (
            turn["content"].rstrip() + tag(f"a message of the role {turn['role']}") if is_tagged else turn["content"]
        )
        turns.append({**turn, "content": content})
        if calls:
            turns[-1]["tool_calls"] = calls
    text = Conversation(turns, tools).render(tokenizer)
    return next((thing for tag, thing in tags.items() if tag not in text), "")


def _tagged(document: dict[str, object], values: Sequence[str], tag: Callable[[], str]) -> dict[str, object]:
    """A tool or a call with a tag behind its name, and one among its arguments or the properties of its parameters,
    which stand under the keys `values`."""
    function = copy.deepcopy(document.get("function", document))
    assert isinstance(function, dict)
    function["name"] = f"{function.get('name', '')}{tag()}"
    inner: object = function
    for key in values:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner[tag()] = {"type": "string"} if "properties" in values else "x"
    return {**document, "function": function} if "function" in document else function


def _answers_by_prefixes(
    conversation: Conversation, text: str, tokenizer: ChatTokenizer, learned: Sequence[bool]
) -> list[CharacterSpan] | str:
    """The answers that are learned, each from behind the prompt for it; or why they are not sure to be there."""
    spans: list[CharacterSpan] = []
    turns = conversation.turns
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    for index in compress(answers, learned):
        prompt = conversation.render(tokenizer, index, prompt=True)
        is_last = index == len(turns) - 1
        alone = text if is_last else conversation.render(tokenizer, index + 1)
        content = turns[index]["content"].strip()
        start = alone.find(content, len(prompt))
        if not alone.startswith(prompt):
            return f"{THE_TEMPLATE} does not begin an answer with its own prompt for one"
        if start < 0:
            return f"{THE_TEMPLATE} rewrites the answer"
        after = (start + len(content), _agreement(alone, text))
        end = _end_of_answer(alone, after, tokenizer, last="tool_calls" in turns[index])
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


def _marked_answers(conversation: Conversation, text: str, tokenizer: ChatTokenizer) -> list[CharacterSpan] | str:
    """The answers in the template's `{% generation %}` blocks; or why they are not sure to be there. A block that does
    not hold the token that closes the answer is extended to it."""
    answers = [turn for turn in conversation.turns if turn["role"] == "assistant"]
    rendered, blocks = _generation_blocks(conversation, tokenizer)
    marked = _joined(blocks, text)
    if rendered != text or len(marked) != len(answers):
        return f"{THE_TEMPLATE} marks {len(marked)} answers by generation blocks, and the row has {len(answers)}"
    spans: list[CharacterSpan] = []
    for (start, end), turn, limit in zip(marked, answers, _limits(marked, text), strict=True):
        content, has_calls = turn["content"].strip(), "tool_calls" in turn
        found = text.find(content, start, end)
        if found < 0:
            return f"{THE_TEMPLATE} rewrites the answer"
        inside = _end_of_answer(text, (found + len(content), end), tokenizer, last=has_calls)
        closed = inside or _end_of_answer(text, (end, limit), tokenizer, last=False)
        if closed is None or text[end:closed].strip() not in ("", *tokenizer.all_special_tokens):
            raise _never_closed()
        spans.append((start, max(end, closed)))
    return spans


def _joined(blocks: Sequence[CharacterSpan], text: str) -> list[CharacterSpan]:
    """The blocks, those together with nothing but white space between them: some templates mark an answer's EOS apart.

    >>> _joined([(0, 2), (3, 4), (6, 7)], "yo </s>")
    [(0, 4), (6, 7)]
    """
    joined: list[CharacterSpan] = []
    for start, end in blocks:
        is_next = bool(joined) and not text[joined[-1][1] : start].strip()
        joined = [*joined[:-1], (joined[-1][0], end)] if is_next else [*joined, (start, end)]
    return joined


def _limits(marked: Sequence[CharacterSpan], text: str) -> Iterator[int]:
    """For each block, where the next one begins."""
    yield from (start for start, _ in marked[1:])
    yield len(text)


def _generation_blocks(conversation: Conversation, tokenizer: ChatTokenizer) -> tuple[str, list[CharacterSpan]]:
    # Here, because it loads torch: `apply_chat_template` gives the blocks for its own tokens only, not the characters.
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template  # its types say less than it gives
    template, tokens = _on_one_day(str(tokenizer.chat_template)), tokenizer.special_tokens_map
    with limited_time(TEMPLATE_SECONDS, _endless_template), limited_memory(TEMPLATE_BYTES):
        (text,), (blocks,) = render(
            [conversation.turns],
            tools=conversation.tools or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokens,
        )
    return text, blocks


def _end_of_answer(text: str, within: CharacterSpan, tokenizer: ChatTokenizer, *, last: bool) -> int | None:
    """The index behind the first EOS within a span, else behind the first special token there; None where there is
    neither. Behind the `last` one in a turn with calls, which may hold special tokens themselves."""
    eos = [] if tokenizer.eos_token is None else [str(tokenizer.eos_token)]
    find = text.rfind if last else text.find
    for tokens in (eos, [token for token in tokenizer.all_special_tokens if token]):
        found = [(index, index + len(token)) for token in tokens if (index := find(token, *within)) >= 0]
        if found:
            return (max if last else min)(found)[1]
    return None


def _never_closed() -> ModelError:
    families = ", ".join(name for name in get_args(ChatFormat) if name != "tokenizer")
    return ModelError(
        "The tokenizer's chat template closes an answer with no special token, so nothing would teach the model to "
        f"stop. Expected: its EOS behind every answer. Set model.chat_format to one of {families}, or fix the template."
    )
