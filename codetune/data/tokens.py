"""Examples -> token ids, for scoring and for training. What is cut is counted, what leaves nothing is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from codetune.data.chat import converse
from codetune.project import ChatFormat
from codetune.records import Example, Refusal


@dataclass(frozen=True, slots=True)
class TrainingTokens:
    """A sample as the model is trained on it; `learned[i]` says whether token `i` is one that it learns to write."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    truncated: bool
    lost_tokens: int


def training_tokens(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, example: Example, max_length: int, too_long: str
) -> TrainingTokens | Refusal:
    """The whole conversation tokenised at once, so that the saved chat template gives the very same tokens; loss is on
    the tokens that hold a character of an answer or its EOS. A cut answer gets no EOS."""
    bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""
    conversation = converse(chat_format, example.messages, tokenizer, bos)
    if isinstance(conversation, str):
        return Refusal(example.id, conversation, example.at)
    encoded = tokenizer(conversation.text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    learned = _inside(encoded["offset_mapping"], conversation.answers)
    if len(ids) > max_length and too_long == "drop":
        return Refusal(example.id, f"longer than {max_length} tokens", example.at)
    if not any(learned[1:max_length]):  # the first token is predicted from nothing
        return Refusal(example.id, f"no answer token within {max_length} tokens", example.at)
    lost = max(0, len(ids) - max_length)
    return TrainingTokens(tuple(ids[:max_length]), tuple(learned[:max_length]), lost > 0, lost)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model's configuration asks for a BOS: whether the tokenizer, asked plainly, puts one."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens hold a character of one of the spans; both are in the order of the text."""
    inside, waiting = [], list(reversed(spans))
    for start, end in offsets:
        while waiting and start >= waiting[-1][1]:
            waiting.pop()
        inside.append(bool(waiting) and end > waiting[-1][0])
    return inside
