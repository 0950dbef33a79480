"""Conversations -> the text a model is trained on, and the same thing as a Jinja template for its tokenizer.

Each chat family is a row of one table (method.md, section 2), read by `converse` here and by `template`, whose result
is saved with the trained tokenizer: both write the same text, so training and generation cannot drift apart. Every
answer is closed by the tokenizer's EOS. Knows characters only; which tokens those become is for `tokens.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from codetune.errors import ModelError
from codetune.project.sections import ChatFormat
from codetune.records import Message
from codetune.text import first_line

Span = tuple[int, int]  # characters [start, end)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation written out, and which of its characters the model learns to write."""

    text: str
    answers: tuple[Span, ...]  # each ends behind the answer's EOS


@dataclass(frozen=True, slots=True)
class Family:
    """What stands around the texts. Where a family has no place for a system text, it opens the first user turn."""

    user: tuple[str, str]  # before a user's text, and from there to where the answer starts
    between: str  # after an answer's EOS, where another turn follows
    system: tuple[str, str] | None = None
    bos_every_turn: bool = False
    stops: tuple[str, ...] = ()  # the family's end of turn; EOS always stops


_INSTRUCTION = Family(user=("### Instruction:\n", "\n### Response:\n"), between="\n")

FAMILIES: Mapping[str, Family] = {
    "deepseek": _INSTRUCTION,
    "starcoder2": _INSTRUCTION,
    "codellama": Family(user=("[INST] ", " [/INST]"), between="", bos_every_turn=True),
    "codegemma": Family(
        user=("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
        between="<end_of_turn>\n",
        stops=("<end_of_turn>",),
    ),
    "codeqwen": Family(
        user=("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        between="\n",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        bos_every_turn=True,
        stops=("<|im_end|>",),
    ),
    "llama3": Family(
        user=(
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        between="<|eot_id|>",
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        stops=("<|eot_id|>",),
    ),
}


class ChatTokenizer(Protocol):
    """What `converse` asks of a tokenizer; transformers' own satisfy it."""

    @property
    def eos_token(self) -> Any: ...

    @property
    def all_special_tokens(self) -> list[str]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any: ...


def converse(
    chat_format: ChatFormat, messages: Sequence[Message], tokenizer: ChatTokenizer, bos: str
) -> Conversation | str:
    """The conversation as text, or the reason why it cannot be written so. `bos` is empty where none is wanted; the
    tokenizer's own template (`tokenizer`) puts its BOS itself."""
    if chat_format == "tokenizer":
        return _converse_by_template(messages, tokenizer)
    if not _alternates(messages):
        return "turns do not alternate between user and assistant"
    if tokenizer.eos_token is None:
        raise ModelError(
            "The model's tokenizer has no EOS token (eos_token), so nothing would teach the model where answers end. "
            'Expected: one that it knows. Name it in tokenizer_config.json, such as "eos_token": "</s>".'
        )
    return _converse_by_family(FAMILIES[chat_format], messages, bos, tokenizer.eos_token)


def template(chat_format: ChatFormat, with_bos: bool) -> str:
    """The Jinja chat template that writes what `converse` writes; not for `tokenizer`, which has its own.

    The header of the answer belongs to the user's turn, so `add_generation_prompt` changes nothing.
    """
    family = FAMILIES[chat_format]
    between = _quoted(family.between) + (" + bos_token" if with_bos and family.bos_every_turn else "")
    before_user = _quoted(family.user[0])
    if family.system is None:
        system = "{%- set first.system = message['content'] + '\\n\\n' -%}"
        user = f"{{{{- {before_user} + first.system + message['content'] + {_quoted(family.user[1])} -}}}}"
        user += "{%- set first.system = '' -%}"
    else:
        system = f"{{{{- {_quoted(family.system[0])} + message['content'] + {_quoted(family.system[1])} -}}}}"
        user = f"{{{{- {before_user} + message['content'] + {_quoted(family.user[1])} -}}}}"
    return (
        ("{{- bos_token -}}" if with_bos else "")
        + "{%- set first = namespace(system='') -%}"
        + "{%- for message in messages -%}"
        + "{%- if message['role'] == 'system' -%}"
        + system
        + "{%- elif message['role'] == 'user' -%}"
        + user
        + "{%- else -%}{{- message['content'] + eos_token -}}"
        + f"{{%- if not loop.last -%}}{{{{- {between} -}}}}{{%- endif -%}}"
        + "{%- endif -%}{%- endfor -%}"
    )


def stop_texts(chat_format: ChatFormat) -> tuple[str, ...]:
    """What ends a turn beside EOS, in the family's words; a tokenizer's own template is not taken apart here."""
    return () if chat_format == "tokenizer" else FAMILIES[chat_format].stops


def _alternates(messages: Sequence[Message]) -> bool:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return len(turns) % 2 == 0 and turns == ["user", "assistant"] * (len(turns) // 2) and bool(turns)


def _converse_by_family(family: Family, messages: Sequence[Message], bos: str, eos: str) -> Conversation:
    text, answers, system = bos, [], ""
    for number, message in enumerate(messages):
        if message.role == "system" and family.system is None:
            system = message.content + "\n\n"
        elif message.role == "system" and family.system is not None:
            text += family.system[0] + message.content + family.system[1]
        elif message.role == "user":
            text += family.user[0] + system + message.content + family.user[1]
            system = ""
        else:
            start = len(text)
            text += message.content + eos
            answers.append((start, len(text)))
            if number + 1 < len(messages):
                text += family.between + (bos if family.bos_every_turn else "")
    return Conversation(text, tuple(answers))


def _converse_by_template(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Conversation | str:
    """An answer runs from the end of the generation prompt to the EOS behind it (or, in templates that close a turn
    by another special token, to that)."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=False)
        prompts = {
            number: _render(tokenizer, turns[:number], add_generation_prompt=True)
            for number, message in enumerate(messages)
            if message.role == "assistant"
        }
    except TemplateError as why:
        return f"the tokenizer's chat template refuses it: {first_line(why)}"
    except ValueError as why:  # how transformers says that there is none
        raise ModelError(
            "The model's tokenizer has no chat template, and model.chat_format says `tokenizer`. Expected: an instruct "
            "model's tokenizer. Set model.chat_format to one of the families, such as deepseek"
        ) from why
    closers = {token: 1 for token in tokenizer.all_special_tokens if token}
    if tokenizer.eos_token is not None:
        closers[tokenizer.eos_token] = 0
    answers = []
    for number, prompt in prompts.items():
        written = text.find(messages[number].content.strip(), len(prompt))
        if not text.startswith(prompt) or written < 0:
            return "the tokenizer's chat template rewrites earlier turns or the answer"
        following = _start_of_next(text, messages, number, written)
        end = _end_of_answer(text, written + len(messages[number].content.strip()), following, closers)
        if end is None:
            raise ModelError(
                "The tokenizer's chat template closes an answer with no special token, so nothing would teach the "
                "model to stop. Expected: its EOS behind every answer. Set model.chat_format to one of "
                f"{', '.join(FAMILIES)}, or mend the template."
            )
        answers.append((len(prompt), end))
    return Conversation(text, tuple(answers))


def _render(tokenizer: ChatTokenizer, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))


def _start_of_next(text: str, messages: Sequence[Message], number: int, written: int) -> int:
    if number + 1 == len(messages):
        return len(text)
    behind = written + len(messages[number].content.strip())
    return text.find(messages[number + 1].content.strip(), behind)


def _end_of_answer(text: str, start: int, end: int, closers: Mapping[str, int]) -> int | None:
    """Behind the first EOS in [start, end), else behind the first special token, else None."""
    found = [
        (rank, place, place + len(token))
        for token, rank in closers.items()
        if (place := text.find(token, start, end)) >= 0
    ]
    return min(found)[2] if found else None


def _quoted(text: str) -> str:
    return json.dumps(text)  # a JSON string is a Jinja string as well
