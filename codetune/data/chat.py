"""Messages -> the text that a model is trained on, and the Jinja chat template that writes the same text.

A chat family is one record of `FAMILIES` (docs/method.md, section 2). The template is saved with the trained tokenizer,
so training and generation use the same text. Every answer ends with the tokenizer's EOS. The template that a tokenizer
brings with it is in `own_template.py`. Makes no tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from codetune.data.own_template import (
    CharacterSpan,
    ChatTokenizer,
    RenderedChat,
    learned_answers,
    render_by_tokenizer,
)
from codetune.errors import ModelError
from codetune.project.sections import ChatFormat, LearnedAnswers
from codetune.records import Message


@dataclass(frozen=True, slots=True)
class ChatFamily:
    """The text that a family of models has around the messages."""

    before_user: str
    before_answer: str  # after the user's text
    between_turns: str  # after an answer's EOS, where another turn follows
    around_system: tuple[str, str] | None = None  # None: a system text is put before the first user's text
    bos_every_turn: bool = False  # or at the start of the text alone
    stop_strings: tuple[str, ...] = ()  # end generation, beside EOS
    special_tokens: tuple[str, ...] = ()  # of the text above: each a single token of a tokenizer that fits
    signs: tuple[str, ...] = ()  # by which model/chat_format.py knows a model of a family without special tokens


_INSTRUCTION = ChatFamily(before_user="### Instruction:\n", before_answer="\n### Response:\n", between_turns="\n")

FAMILIES: Mapping[str, ChatFamily] = {
    "deepseek": replace(_INSTRUCTION, signs=("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<|EOT|>")),
    "starcoder2": replace(_INSTRUCTION, signs=("model_type starcoder2",)),
    "codellama": ChatFamily(
        before_user="[INST] ",
        before_answer=" [/INST]",
        between_turns="",
        bos_every_turn=True,
        signs=("tokenizer_class CodeLlamaTokenizer",),
    ),
    "codegemma": ChatFamily(
        before_user="<start_of_turn>user\n",
        before_answer="<end_of_turn>\n<start_of_turn>model\n",
        between_turns="<end_of_turn>\n",
        stop_strings=("<end_of_turn>",),
        special_tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    "codeqwen": ChatFamily(
        before_user="<|im_start|>user\n",
        before_answer="<|im_end|>\n<|im_start|>assistant\n",
        between_turns="\n",
        around_system=("<|im_start|>system\n", "<|im_end|>\n"),
        bos_every_turn=True,
        stop_strings=("<|im_end|>",),
        special_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": ChatFamily(
        before_user="<|start_header_id|>user<|end_header_id|>\n\n",
        before_answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        between_turns="<|eot_id|>",
        around_system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        stop_strings=("<|eot_id|>",),
        special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}


def require_fitting_format(chat_format: ChatFormat, tokenizer: ChatTokenizer) -> None:
    """Raises ModelError where the tokenizer lacks special tokens of the format: it would cut them into pieces."""
    if chat_format == "tokenizer" or not (missing := _missing_tokens(chat_format, tokenizer)):
        return
    fitting = [name for name in FAMILIES if not _missing_tokens(name, tokenizer)]
    fitting += ["tokenizer (its own template)"] if tokenizer.chat_template else []
    raise ModelError(
        f"model.chat_format is {chat_format}, and the model's tokenizer does not have its special tokens "
        f"({', '.join(missing)}): the model would be trained on their pieces. Expected: a format that fits the "
        f"tokenizer. Set model.chat_format to one of: {', '.join(fitting)}"
    )


def _missing_tokens(chat_format: str, tokenizer: ChatTokenizer) -> list[str]:
    special = FAMILIES[chat_format].special_tokens
    return [text for text in special if len(tokenizer.encode(text, add_special_tokens=False)) != 1]


def render_chat(
    chat_format: ChatFormat,
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    bos: str,
    learn: LearnedAnswers,
    tools: str = "",
) -> RenderedChat | str:
    """The conversation, as the reader of data sets lets it through, in text; or why the format cannot express it.

    `bos` is the BOS token, or "" for none; `tokenizer` as format writes its own BOS. `learn` says which answers the
    model is trained to write; `tools` is the JSON text of the row's tools, or "". Raises ModelError for a tokenizer
    without EOS, and for a template of its own that is missing or closes no answer."""
    if chat_format == "tokenizer":
        return render_by_tokenizer(messages, tokenizer, learn, tools)
    if tokenizer.eos_token is None:
        raise ModelError(
            "The model's tokenizer has no EOS token (eos_token), so nothing would teach the model where answers end. "
            'Expected: one that it knows. Name it in tokenizer_config.json, such as "eos_token": "</s>".'
        )
    if tools or any(message.calls or message.role == "tool" for message in messages):
        return f"the chat format {chat_format} has no tools; a tokenizer's own template may have (model.chat_format)"
    rendered = _render_by_family(FAMILIES[chat_format], messages, bos, str(tokenizer.eos_token))
    return replace(rendered, answers=tuple(compress(rendered.answers, learned_answers(messages, learn))))


def chat_template(chat_format: ChatFormat, with_bos: bool) -> str:
    """The Jinja chat template that writes what `render_chat` writes, for any format but `tokenizer`. The header of an
    answer belongs to the user's turn, so `add_generation_prompt` changes nothing."""
    family = FAMILIES[chat_format]
    # A JSON string is a Jinja string as well.
    between = json.dumps(family.between_turns) + (" + bos_token" if with_bos and family.bos_every_turn else "")
    before_user, before_answer = json.dumps(family.before_user), json.dumps(family.before_answer)
    if family.around_system is None:
        system = "{%- set first.system = message['content'] + '\\n\\n' -%}"
        user = f"{{{{- {before_user} + first.system + message['content'] + {before_answer} -}}}}"
        user += "{%- set first.system = '' -%}"
    else:
        before_system, after_system = map(json.dumps, family.around_system)
        system = f"{{{{- {before_system} + message['content'] + {after_system} -}}}}"
        user = f"{{{{- {before_user} + message['content'] + {before_answer} -}}}}"
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


def stop_strings(chat_format: ChatFormat) -> tuple[str, ...]:
    """The strings that end generation beside EOS. None for `tokenizer`, whose template is not analysed."""
    return () if chat_format == "tokenizer" else FAMILIES[chat_format].stop_strings


def _render_by_family(family: ChatFamily, messages: Sequence[Message], bos: str, eos: str) -> RenderedChat:
    text, system = bos, ""
    answers: list[CharacterSpan] = []
    for message in messages:
        if message.role == "system" and family.around_system:
            before, after = family.around_system
            text += before + message.content + after
        elif message.role == "system":
            system = message.content + "\n\n"
        elif message.role == "user":
            if answers:
                text += family.between_turns + (bos if family.bos_every_turn else "")
            text += family.before_user + system + message.content + family.before_answer
            system = ""
        else:
            start = len(text)
            text += message.content + eos
            answers.append((start, len(text)))
    return RenderedChat(text, tuple(answers))
