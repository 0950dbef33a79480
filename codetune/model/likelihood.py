"""Spans of tokens -> the mean negative log-likelihood of their predicted tokens, in nats, under a causal model.

Every span is padded to a length that follows from its own (`bucket`), and meets only spans of the same padded length:
on a CPU its result then has the same bits alone, in any batch, and in any order (what decides is the padded length, not
the neighbours). Logits are made only where a token is predicted, some positions at a time, and summed up as float32
log-probabilities in double precision. Shapes: B spans, T padded length, P predicted positions of one span, H width,
V vocabulary. Knows nothing of instructions and answers: that is `selection/score.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from codetune.data.tokens import Span
from codetune.errors import ModelError
from codetune.model.memory import is_out_of_memory

BUCKET_TOKENS = 32
CHUNK_LOGITS = 1 << 25  # float32 logits at once: 128 MiB


class CausalScorer:
    """Likelihoods by one model. How many spans come at once is the caller's choice; what does not fit is halved."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._chunk = max(1, CHUNK_LOGITS // model.config.get_text_config().vocab_size)
        self._require_plain_head()

    @property
    def window(self) -> int:
        """Tokens that the model's configuration allows; no bound where it names none."""
        longest = getattr(self._model.config, "max_position_embeddings", None)
        return longest if isinstance(longest, int) else 2**31

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        """One value a span, NaN where the model gives one; None where memory does not suffice for the span alone."""
        buckets: dict[int, list[int]] = defaultdict(list)
        for index, span in enumerate(spans):
            buckets[bucket(len(span.tokens))].append(index)
        results: list[float | None] = [None] * len(spans)
        for length, members in buckets.items():
            values = self._nll_or_halves([spans[index] for index in members], length)
            for index, value in zip(members, values, strict=True):
                results[index] = value
        return results

    def _nll_or_halves(self, spans: Sequence[Span], length: int) -> list[float | None]:
        try:
            return self._nll_of_batch(spans, length)
        except RuntimeError as why:
            if not is_out_of_memory(why):
                raise
        # Outside the handler: there the traceback still holds the tensors that filled the memory.
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(spans) == 1:
            return [None]
        middle = len(spans) // 2
        return self._nll_or_halves(spans[:middle], length) + self._nll_or_halves(spans[middle:], length)

    @torch.inference_mode()
    def _nll_of_batch(self, spans: Sequence[Span], length: int) -> list[float | None]:
        rows = [[*span.tokens, *[0] * (length - len(span.tokens))] for span in spans]
        ids = torch.tensor(rows, device=self._model.device)  # [B, T]
        # No mask: what is padded comes after everything that is predicted, and attention looks back only.
        hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, H]
        sums = torch.stack([self._sum_of_span(hidden[row], ids[row], span) for row, span in enumerate(spans)]).tolist()
        return [total / (len(span.tokens) - span.start) for total, span in zip(sums, spans, strict=True)]

    def _sum_of_span(self, hidden: torch.Tensor, ids: torch.Tensor, span: Span) -> torch.Tensor:
        # Span by span, so that the shape of the product with the head depends on this span alone.
        total = torch.zeros((), dtype=torch.float64, device=ids.device)
        for first in range(span.start, len(span.tokens), self._chunk):
            last = min(first + self._chunk, len(span.tokens))
            logits = self._head(hidden[first - 1 : last - 1]).float()  # [P, V]
            targets = ids[first:last]
            total -= torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).sum(dtype=torch.float64)
        return total

    @torch.inference_mode()
    def _require_plain_head(self) -> None:
        """An error for architectures that scale or cap their logits after the head, which `_head` would leave out."""
        ids = torch.arange(8, device=self._model.device)[None]  # [1, T]
        whole = self._model(input_ids=ids, use_cache=False).logits[0]
        own = self._head(self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
        if not torch.allclose(whole.float(), own.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
            raise ModelError(
                f"The architecture {self._model.config.model_type} changes its logits after the output layer. "
                "Expected: logits that are the output layer's. Set score.model to a model of another architecture."
            )


def bucket(tokens: int) -> int:
    """The length that a span of so many tokens is padded to.

    >>> [bucket(tokens) for tokens in (1, 31, 32, 100)]
    [32, 32, 64, 128]
    """
    return (tokens // BUCKET_TOKENS + 1) * BUCKET_TOKENS
