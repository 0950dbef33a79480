"""What all ways of decoding share: a request, what became of it, and where a text ends. A text ends at the EOS of model
or tokenizer, at the chat family's end of turn, before a stop string, or where there is no room. Runs no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from codetune.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# Looking for stop strings at every token would cost as much as a tiny model itself; up to 7 tokens are cut off again.
STOP_CHECK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to be made; `stream` names its random numbers, which are nobody else's."""

    prompt: tuple[int, ...]
    stops: tuple[str, ...]
    stream: str


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The text behind a prompt, before its first stop string; `truncated` where only the lack of room has ended it."""

    text: str
    tokens: int  # that the model has made for it
    truncated: bool


class Decoder(Protocol):
    """What writes: `complete.py`, `continuous.py`, `vllm_engine.py`."""

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """The number of a request and what came of it, each once, in any order."""


class StopCriteria:
    """Where the completions of one model end. `configurations` may name EOS tokens: the model's own and its generation
    configuration."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, configurations: Sequence[Any], end_of_turn: Sequence[str]
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        self._tokenizer = tokenizer
        self.tokens: frozenset[int] = frozenset(
            _eos_tokens([*configurations, tokenizer]) | {vocabulary[text] for text in end_of_turn if text in vocabulary}
        )
        self._texts = tuple(text for text in end_of_turn if text not in vocabulary)
        windows = [getattr(configuration, "max_position_embeddings", None) for configuration in configurations]
        self._window: int | None = next((window for window in windows if window is not None), None)

    def stops(self, request: GenerationRequest) -> tuple[str, ...]:
        """All texts before which the completion ends."""
        return (*request.stops, *self._texts)

    def room(self, request: GenerationRequest, max_new_tokens: int) -> int:
        """New tokens at most. Raises InputError for a prompt that fills the model's window."""
        if self._window is None:
            return max_new_tokens
        if len(request.prompt) >= self._window:
            raise InputError(
                f"A prompt of {len(request.prompt)} tokens fills the model's window of {self._window}. Expected: room "
                "for an answer. Use a model with a longer window, or a benchmark with shorter prompts."
            )
        return min(max_new_tokens, self._window - len(request.prompt))

    def has_stop(self, request: GenerationRequest, tokens: Sequence[int]) -> bool:
        """Whether a stop string has appeared among the last `STOP_CHECK_TOKENS` new tokens."""
        stops = self.stops(request)
        # It then ends in the last few tokens, and a token is at least a byte.
        recent = STOP_CHECK_TOKENS + max((len(stop.encode()) for stop in stops), default=0)
        # Decoded from the middle a text can differ at its edge, so the whole has the last word.
        return (
            _first_stop(self._plain(tokens[-recent:]), stops) is not None
            and _first_stop(self._behind(request.prompt, tokens), stops) is not None
        )

    def written(self, request: GenerationRequest, tokens: Sequence[int]) -> GeneratedText:
        """What the new tokens come to; one that ends a text can only be the last."""
        ended = bool(tokens) and tokens[-1] in self.tokens
        text = self._behind(request.prompt, tokens[:-1] if ended else tokens)
        stop = _first_stop(text, self.stops(request))
        return GeneratedText(text[:stop], len(tokens), truncated=stop is None and not ended)

    def _behind(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Decoded behind the prompt: alone, a SentencePiece tokenizer would drop the first token's leading space."""
        before, whole = self._plain(prompt), self._plain([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self._plain(tokens)

    def _plain(self, tokens: Sequence[int]) -> str:
        # Without the clean-up that old configurations ask for: it takes spaces out of code.
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one sequence, one text
        return text


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop string begins."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(found, default=None)


def _eos_tokens(holders: Sequence[Any]) -> set[int]:
    tokens: set[int] = set()
    for named in (getattr(holder, "eos_token_id", None) for holder in holders):
        tokens |= set() if named is None else set(named) if isinstance(named, list | tuple) else {int(named)}
    return tokens


def uniform(stream: str, place: int) -> float:
    """In [0, 1), with 40 bits.

    >>> uniform("42/Own/0/0", 0) == uniform("42/Own/0/0", 0) != uniform("42/Own/0/0", 1)
    True
    """
    digest = hashlib.blake2b(f"{place}\n{stream}".encode(), digest_size=5).digest()
    return int.from_bytes(digest, "big") / 2**40


def stream_seed(stream: str) -> int:
    """For engines that draw by themselves: 63 bits."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "big") >> 1


def sample(logits: torch.Tensor, temperature: float, top_p: float, numbers: Sequence[float]) -> torch.Tensor:
    """The token of each row [B] for logits [B, V], by inversion of the cumulative distribution.

    Tokens stand in the order of their ids: sorted by probability, two that are nearly equal could change places with
    the rounding of a batch, and a whole token's worth of random numbers with them."""
    shares = (logits.double() / temperature).softmax(-1)  # [B, V]
    if top_p < 1:
        shares = shares.where(shares >= _least_share(shares, top_p), 0.0)
    reached = shares.cumsum(-1)  # [B, V]
    drawn = reached.new_tensor(numbers)[:, None] * reached[:, -1:]  # [B, 1]
    return (reached <= drawn).sum(-1)  # the first token whose sum is above


def _least_share(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """The share of the last token of the nucleus [B, 1]: the fewest likeliest tokens that make up `top_p` together.
    Tokens of exactly that share all belong to it."""
    ordered = shares.sort(dim=-1, descending=True).values
    last = (ordered.cumsum(-1) < top_p).sum(-1, keepdim=True).clamp(max=shares.shape[-1] - 1)
    return ordered.gather(-1, last)
