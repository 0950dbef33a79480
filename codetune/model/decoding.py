"""The types and rules that all decoders share: a request, its generated text, the choice of the next token, and where a
text ends: at EOS, at the end of turn of the chat family, before a stop string, or at the token limit. Runs no network.

Sampling is by temperature and nucleus (Holtzman et al. 2019, arXiv 1904.09751, sec. 3.1). The random number of a token
is a hash of the sample's name and the token's index. There is no generator state, so batch size, order and restarts do
not change a sample (in float32; except for a number within rounding of a boundary).

Axes: B rows in the batch, V vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from codetune.data.thinking import thought_tokens
from codetune.errors import CodetuneError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# A search for stop strings after every token would cost as much as a tiny model; up to 7 tokens are cut off again.
STOP_CHECK_TOKENS = 8
NOT_FINITE = -1  # in the place of a token, where the logits were not finite


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to generate."""

    prompt: tuple[int, ...]
    stops: tuple[str, ...]
    stream: str  # names the random numbers of this sample; no other request has the same


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The text after a prompt, up to its first stop string."""

    text: str
    tokens: int  # how many the model generated for it
    truncated: bool  # whether only the token limit ended it


class Decoder(Protocol):
    """Generates completions: `batch_generator.py`, `continuous_batching.py`, `vllm_engine.py`."""

    def refusal(self, request: GenerationRequest) -> str:
        """The reason why the model cannot complete the prompt; "" if it can."""

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Index and completion of each request, each once, in any order; none of them has a refusal."""


class StopCriteria:
    """The EOS tokens, stop strings and window that end the completions of a model. `configurations` may name EOS tokens
    and the window: the model's own configuration and its generation configuration."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, configurations: Sequence[object], end_of_turn: Sequence[str]
    ) -> None:
        vocabulary = tokenizer.get_vocab()
        self._tokenizer = tokenizer
        special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        kept = thought_tokens(special.keys())
        self._left_out = frozenset(index for text, index in special.items() if text not in kept) if kept else None
        self.tokens: frozenset[int] = frozenset(
            _eos_tokens([*configurations, tokenizer]) | {vocabulary[text] for text in end_of_turn if text in vocabulary}
        )
        self._texts = tuple(text for text in end_of_turn if text not in vocabulary)
        windows = [getattr(configuration, "max_position_embeddings", None) for configuration in configurations]
        self._window: int | None = next((window for window in windows if window is not None), None)

    def stop_strings(self, request: GenerationRequest) -> tuple[str, ...]:
        """All texts before which the completion ends."""
        return (*request.stops, *self._texts)

    def refusal(self, request: GenerationRequest) -> str:
        """The reason why a prompt has no completion; "" if it has one."""
        if self._window is None or len(request.prompt) < self._window:
            return ""
        return f"prompt fills the model's window of {self._window} tokens"

    def token_limit(self, request: GenerationRequest, max_new_tokens: int) -> int:
        """New tokens at most, for a prompt without a refusal."""
        if self._window is None:
            return max_new_tokens
        assert not self.refusal(request)
        return min(max_new_tokens, self._window - len(request.prompt))

    def has_stop(self, request: GenerationRequest, tokens: Sequence[int]) -> bool:
        """Whether a stop string has appeared in the last `STOP_CHECK_TOKENS` of the new tokens."""
        stops = self.stop_strings(request)
        # It then ends in the last few tokens, and a token is at least a byte.
        recent = STOP_CHECK_TOKENS + max((len(stop.encode()) for stop in stops), default=0)
        # Text that is decoded from the middle can differ at its start, so the whole text decides.
        return (
            _first_stop(self._decoded(tokens[-recent:]), stops) is not None
            and _first_stop(self._decoded_after(request.prompt, tokens), stops) is not None
        )

    def generated_text(self, request: GenerationRequest, tokens: Sequence[int]) -> GeneratedText:
        """The text of the new tokens. An EOS can only be the last of them."""
        ended = bool(tokens) and tokens[-1] in self.tokens
        text = self._decoded_after(request.prompt, tokens[:-1] if ended else tokens)
        stop = _first_stop(text, self.stop_strings(request))
        return GeneratedText(text[:stop], len(tokens), truncated=stop is None and not ended)

    def _decoded_after(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Decoded together with the prompt: alone, a SentencePiece tokenizer drops the leading space."""
        before, whole = self._decoded(prompt), self._decoded([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self._decoded(tokens)

    def _decoded(self, tokens: Sequence[int]) -> str:
        """Without special tokens, but for those that show where thoughts end."""
        # The clean-up that old configurations ask for removes spaces from code.
        if self._left_out is None:
            text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        else:
            shown = [token for token in tokens if token not in self._left_out]
            text = self._tokenizer.decode(shown, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one sequence, one text
        return text


def not_finite_logits(request: GenerationRequest, tokens_before: int, dtype: str) -> CodetuneError:
    """The error for logits with NaN or infinity, which choose no token. `request.stream` names the task."""
    return CodetuneError(
        f"The model's logits are not finite numbers at token {tokens_before + 1} of the completion "
        f"{request.stream} (seed/task/sample), computed in {dtype}. Expected: finite numbers; a model can overflow in "
        "float16. Nothing that was finished is lost: set model.dtype to bfloat16 or float32, or check the model's "
        "weights, and run the command again"
    )


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """The offset of the earliest stop string; None without one."""
    found = [offset for stop in stops if (offset := text.find(stop)) >= 0]
    return min(found, default=None)


def _eos_tokens(configurations: Sequence[object]) -> set[int]:
    tokens: set[int] = set()
    for named in (getattr(configuration, "eos_token_id", None) for configuration in configurations):
        tokens |= set() if named is None else set(named) if isinstance(named, list | tuple) else {int(named)}
    return tokens


def uniform(stream: str, index: int) -> float:
    """The random number of the token at `index` of a sample: in [0, 1), with 40 bits.

    >>> uniform("42/Own/0/0", 0) == uniform("42/Own/0/0", 0) != uniform("42/Own/0/0", 1)
    True
    """
    digest = hashlib.blake2b(f"{index}\n{stream}".encode(), digest_size=5).digest()
    return int.from_bytes(digest, "big") / 2**40


def stream_seed(stream: str) -> int:
    """A seed of 63 bits for engines that sample by themselves."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "big") >> 1


def masked_where_not_finite(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The tokens [B] that were chosen from logits [B, V], with `NOT_FINITE` where a logit was NaN or infinite. (Minus
    infinity is how some models exclude tokens; not all of them.) No transfer from a GPU: the tokens are read anyway."""
    return tokens.where(logits.amax(-1).isfinite(), NOT_FINITE)


def sample(logits: torch.Tensor, temperature: float, top_p: float, numbers: Sequence[float]) -> torch.Tensor:
    """Samples a token per row, [B], from logits [B, V] and random numbers [B], by inversion of the cumulative
    distribution. Tokens are in the order of their ids: sorted by probability, two that are nearly equal could change
    places through the rounding of a batch, and then a different token would be chosen."""
    probabilities = (logits.double() / temperature).softmax(-1)  # [B, V]
    if top_p < 1:
        probabilities = probabilities.where(probabilities >= _smallest_in_nucleus(probabilities, top_p), 0.0)
    cumulative = probabilities.cumsum(-1)  # [B, V]
    thresholds = cumulative.new_tensor(numbers)[:, None] * cumulative[:, -1:]  # [B, 1]
    return (cumulative <= thresholds).sum(-1)  # the first token whose cumulative probability is above


def _smallest_in_nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest probability in the nucleus, [B, 1]: the fewest tokens of the highest probabilities that sum to
    `top_p`. All tokens of exactly that probability belong to it."""
    ordered = probabilities.sort(dim=-1, descending=True).values
    last = (ordered.cumsum(-1) < top_p).sum(-1, keepdim=True).clamp(max=probabilities.shape[-1] - 1)
    return ordered.gather(-1, last)
