"""Examples -> token ids, for scoring (docs/method.md, section 1) and for training (section 2). Tokens that are cut off
are counted; an example of which nothing is left is refused. Does not pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from codetune.data.chat import render_chat
from codetune.data.control_tokens import UNREADABLE, ControlTokens, EncodedText, control_tokens, count_marks
from codetune.data.own_template import CharacterSpan
from codetune.project.sections import ChatFormat, LearnedAnswers
from codetune.records import Example, Refusal

TOO_LONG, NO_ANSWER = "longer than", "no answer token within"  # so many tokens: reasons of training


@dataclass(frozen=True, slots=True)
class TrainingTokens:
    """A sample as the model is trained on it. The loss is over the tokens `i` with `learned[i]`."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]  # as long as `ids`
    truncated: bool
    lost_tokens: int  # cut off at the end


@dataclass(frozen=True, slots=True)
class DroppedSample:
    """An example that is not trained on."""

    refusal: Refusal
    tokens: int  # its length; 0 where it was never tokenized


@dataclass(frozen=True, slots=True)
class Span:
    """A sequence of tokens; those from index `start` (at least 1) are predicted, each from all tokens before it."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class ScoringTokens:
    """An answer and its context in the conditional pass: the BOS, where the tokenizer has one, and the prompt."""

    context: tuple[int, ...]
    answer: tuple[int, ...]
    bos: int | None  # its token id
    truncated: bool

    @property
    def conditional(self) -> Span:
        return Span(self.context + self.answer, len(self.context) + self._unscored)

    @property
    def unconditional(self) -> Span:
        """The same answer tokens, after the BOS alone."""
        return Span(self.answer if self.bos is None else (self.bos, *self.answer), 1)

    def after(self, prompt: Sequence[int], max_length: int) -> Span:
        """The same answer tokens, after the BOS and the tokens of another prompt. A prompt that leaves no room for them
        in `max_length` tokens loses its beginning."""
        start = () if self.bos is None else (self.bos,)
        room = max_length - len(self.answer) - len(start)
        context = (*start, *prompt[max(0, len(prompt) - room) :])
        return Span(context + self.answer, len(context) + self._unscored)

    @property
    def scored(self) -> int:
        """The number of answer tokens that every pass predicts."""
        return len(self.answer) - self._unscored

    @property
    def _unscored(self) -> int:
        # Without a BOS the unconditional pass has no context for the first answer token: both passes leave it out.
        return 1 if self.bos is None else 0


def scoring_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], examples: Sequence[Example], max_length: int
) -> list[ScoringTokens | Refusal]:
    """For each example the tokens of its answer as it stands after its filled prompt, without EOS; the answer is cut so
    that both fit into `max_length` tokens. Control tokens that are marked in a prompt (`control_tokens.py`), or written
    out in an answer, are text. One call for many examples, because the tokenizer then uses all cores."""
    controls = control_tokens(tokenizer)
    answers = [controls.mark(example.answer) for example in examples]
    encoded = controls.encode([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    return [
        _scored(controls, whole, prompt, answer, tokenizer.bos_token_id, row, max_length)
        for whole, prompt, answer, row in zip(encoded, prompts, answers, examples, strict=True)
    ]


def text_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int] | None]:
    """The token ids of each text, without BOS; None for a text with control tokens that cannot be read as text."""
    return [encoded and encoded.ids for encoded in control_tokens(tokenizer).encode(texts)]


def _scored(
    controls: ControlTokens,
    whole: EncodedText | None,
    prompt: str,
    answer: str,
    bos: int | None,
    example: Example,
    max_length: int,
) -> ScoringTokens | Refusal:
    if whole is None:
        return Refusal(example.id, UNREADABLE, example.at)
    return _fit(*_split_at_answer(controls, whole, prompt, answer), bos, example, max_length)


def _fit(
    before: Sequence[int], answer: Sequence[int], bos: int | None, example: Example, max_length: int
) -> ScoringTokens | Refusal:
    context = tuple(before) if bos is None else (bos, *before)
    room = max(0, max_length - len(context))
    tokens = ScoringTokens(context, tuple(answer[:room]), bos, truncated=len(answer) > room)
    if tokens.scored >= 1:
        return tokens
    if tokens.truncated:
        return Refusal(example.id, f"prompt leaves no room for the answer in {max_length} tokens", example.at)
    return Refusal(example.id, "answer has no token that follows another", example.at)


def training_tokens(
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    example: Example,
    max_length: int,
    too_long: str,
    learn: LearnedAnswers,
) -> TrainingTokens | DroppedSample:
    """The tokens of the whole conversation, tokenized at once as the saved chat template is. The loss is over the
    tokens with a character of an answer that `learn` names, or of its EOS. A longer conversation is truncated (a cut
    answer gets no EOS), or dropped with `too_long` "drop". Raises ModelError as `render_chat` does."""
    controls = control_tokens(tokenizer)
    marked = [
        replace(one, content=controls.mark(one.content), calls=controls.mark(one.calls)) for one in example.messages
    ]
    bos, tools = str(tokenizer.bos_token) if adds_bos(tokenizer) else "", controls.mark(example.tools)
    conversation = render_chat(chat_format, marked, tokenizer, bos, learn, tools)
    if isinstance(conversation, str):
        return _dropped(example, conversation, 0)
    written = [tools, *(text for message in marked for text in (message.content, message.calls))]
    if count_marks(conversation.text) != sum(map(count_marks, written)):
        return _dropped(example, "the tokenizer's chat template rewrites a control token that is written out", 0)
    encoded = controls.encode([conversation.text])[0]
    if encoded is None:
        return _dropped(example, UNREADABLE, 0)
    ids = encoded.ids
    learned = _tokens_in_spans(encoded.offsets, conversation.answers)
    if len(ids) > max_length and too_long == "drop":
        return _dropped(example, f"{TOO_LONG} {max_length} tokens", len(ids))
    if not any(learned[1:max_length]):  # the first token is predicted from nothing
        return _dropped(example, f"{NO_ANSWER} {max_length} tokens", len(ids))
    lost = max(0, len(ids) - max_length)
    return TrainingTokens(tuple(ids[:max_length]), tuple(learned[:max_length]), lost > 0, lost)


def _dropped(example: Example, reason: str, tokens: int) -> DroppedSample:
    return DroppedSample(Refusal(example.id, reason, example.at), tokens)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a BOS before a text, as the model's configuration asks."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


def _tokens_in_spans(offsets: Sequence[CharacterSpan], spans: Sequence[CharacterSpan]) -> list[bool]:
    """For each token, whether it has a character in one of the spans. Both lists are in the order of the text.

    >>> _tokens_in_spans([(0, 2), (2, 5), (5, 6), (6, 9)], [(4, 6)])
    [False, True, True, False]
    """
    inside, remaining = [], list(reversed(spans))
    for start, end in offsets:
        while remaining and start >= remaining[-1][1]:
            remaining.pop()
        inside.append(bool(remaining) and end > remaining[-1][0])
    return inside


def _split_at_answer(
    controls: ControlTokens, whole: EncodedText, prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and of the answer: those of `whole`, which is of both together, cut where the answer's
    characters begin; where a token spans that boundary, both tokenized apart."""
    boundary, (ids, offsets) = len(prompt), whole
    first = next((index for index, (_, end) in enumerate(offsets) if end > boundary), len(ids))
    if 0 < first < len(ids) and offsets[first][0] == boundary == offsets[first - 1][1] > offsets[first - 1][0]:
        return ids[:first], ids[first:]
    # Either a token spans the boundary, or the tokenizer leaves white space out of its offsets (ByteLevel with
    # trim_offsets does). In the second case the tokens begin with those of the prompt alone.
    before = _ids(controls, prompt)
    if ids[: len(before)] == before:
        return before, ids[len(before) :]
    return before, _ids(controls, answer)


def _ids(controls: ControlTokens, part: str) -> list[int]:
    """The tokens of a part of a text that was encoded before."""
    (encoded,) = controls.encode([part])
    assert encoded is not None
    return encoded.ids
