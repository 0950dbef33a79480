"""Examples -> token ids, for scoring and for training. What is cut is counted, what leaves nothing is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import BatchEncoding, PreTrainedTokenizerBase

from codetune.data.chat import converse
from codetune.project.sections import ChatFormat
from codetune.records import Example, Refusal


@dataclass(frozen=True, slots=True)
class TrainingTokens:
    """A sample as the model is trained on it; `learned[i]` says whether token `i` is one that it learns to write."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    truncated: bool
    lost_tokens: int


@dataclass(frozen=True, slots=True)
class DroppedSample:
    """One that nothing is learned from: why, and how many tokens that costs (0 where it could not be written)."""

    refusal: Refusal
    tokens: int


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of which those from `start` on are to be predicted, each from all before it; `start` is at least 1."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class ScoringTokens:
    """An answer and what stands before it; `context` begins with the BOS where the tokenizer has one."""

    context: tuple[int, ...]
    answer: tuple[int, ...]
    bos: int | None
    truncated: bool

    @property
    def conditional(self) -> Span:
        return Span(self.context + self.answer, len(self.context) + self._unscored)

    @property
    def unconditional(self) -> Span:
        """The same answer tokens as in `conditional`, after nothing but the BOS."""
        return Span(self.answer if self.bos is None else (self.bos, *self.answer), 1)

    @property
    def scored(self) -> int:
        """How many answer tokens both passes predict."""
        return len(self.answer) - self._unscored

    @property
    def _unscored(self) -> int:
        # Without a BOS nothing stands before the first answer token in the unconditional pass: both leave it out.
        return 1 if self.bos is None else 0


def scoring_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], examples: Sequence[Example], max_length: int
) -> list[ScoringTokens | Refusal]:
    """For each example its answer tokenised as it stands after its filled prompt, without EOS, cut to fit `max_length`
    with it. All at once: the tokenizer then takes several cores."""
    encoded = _encode(tokenizer, [prompt + row.answer for prompt, row in zip(prompts, examples, strict=True)])
    whole = zip(encoded["input_ids"], encoded["offset_mapping"], prompts, examples, strict=True)
    return [
        _fit(*_split_at_answer(tokenizer, ids, offsets, prompt, row.answer), tokenizer.bos_token_id, row, max_length)
        for ids, offsets, prompt, row in whole
    ]


def _fit(
    before: Sequence[int], answer: Sequence[int], bos: int | None, example: Example, max_length: int
) -> ScoringTokens | Refusal:
    context = tuple(before) if bos is None else (bos, *before)
    tokens = ScoringTokens(context, tuple(answer[: max(0, max_length - len(context))]), bos, False)
    if len(tokens.answer) < len(answer):
        tokens = replace(tokens, truncated=True)
    if tokens.scored >= 1:
        return tokens
    if tokens.truncated:
        return Refusal(example.id, f"prompt leaves no room for the answer in {max_length} tokens", example.at)
    return Refusal(example.id, "answer has no token that follows another", example.at)


def training_tokens(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, example: Example, max_length: int, too_long: str
) -> TrainingTokens | DroppedSample:
    """The whole conversation tokenised at once, so that the saved chat template gives the very same tokens; loss is on
    the tokens that hold a character of an answer or its EOS. A cut answer gets no EOS."""
    bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""
    conversation = converse(chat_format, example.messages, tokenizer, bos)
    if isinstance(conversation, str):
        return _dropped(example, conversation, 0)
    encoded = tokenizer(conversation.text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    learned = _inside(encoded["offset_mapping"], conversation.answers)
    if len(ids) > max_length and too_long == "drop":
        return _dropped(example, f"longer than {max_length} tokens", len(ids))
    if not any(learned[1:max_length]):  # the first token is predicted from nothing
        return _dropped(example, f"no answer token within {max_length} tokens", len(ids))
    lost = max(0, len(ids) - max_length)
    return TrainingTokens(tuple(ids[:max_length]), tuple(learned[:max_length]), lost > 0, lost)


def _dropped(example: Example, reason: str, tokens: int) -> DroppedSample:
    return DroppedSample(Refusal(example.id, reason, example.at), tokens)


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


def _split_at_answer(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], offsets: list[tuple[int, int]], prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """Prompt and answer tokenised together (`ids`), cut where the answer's characters begin; tokenised apart where a
    token spans the boundary."""
    boundary = len(prompt)
    first = next((index for index, (_, end) in enumerate(offsets) if end > boundary), len(ids))
    if 0 < first < len(ids) and offsets[first][0] == boundary == offsets[first - 1][1] > offsets[first - 1][0]:
        return ids[:first], ids[first:]
    # Either a token spans the boundary, or the tokenizer leaves white space out of its offsets (ByteLevel with
    # trim_offsets does): whether the prompt's own tokens come first tells the two apart.
    before: list[int] = _encode(tokenizer, [prompt])["input_ids"][0]
    if ids[: len(before)] == before:
        return before, ids[len(before) :]
    return before, _encode(tokenizer, [answer])["input_ids"][0]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> BatchEncoding:
    # Not verbose: the tokenizer would warn of its own window, which is not the one that counts here.
    encoded: BatchEncoding = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded
