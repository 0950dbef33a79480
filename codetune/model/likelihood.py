"""Spans of tokens -> the mean negative log-likelihood of their predicted tokens, in nats, under a causal model.

On a GPU with a kernel for it spans are laid end to end, and nothing is padded. Elsewhere every span is padded to a
length that follows from its own (`bucket`), and meets only spans of the same padded length: on a CPU its result then
has the same bits alone, in any batch, and in any order (what decides is the padded length, not the neighbours). Logits
are made only where a token is predicted, some positions at a time, and summed up as float32 log-probabilities in double
precision. Shapes: M tokens of a pass with padding, P predicted positions at once, H width, V vocabulary. Knows nothing
of instructions and answers: that is `selection/score.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from codetune.data.packing import next_fit
from codetune.data.tokens import Span
from codetune.errors import ModelError
from codetune.model.attention import KERNELS, AttentionSpec, fused_kernel, packed_inputs, require_kernel
from codetune.model.lm_head import hidden_to_logits
from codetune.model.load import is_out_of_memory
from codetune.model.packing_check import require_isolation

BUCKET_TOKENS = 16
WINDOWS = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # what configurations call it
# Positions that are counted otherwise in a longer pass: a span is then read at its own length, by itself.
LENGTH_DEPENDENT = ("dynamic", "longrope")
CHUNK_LOGITS = 1 << 25  # float32 logits at once: 128 MiB
MAX_TOKENS_PER_PASS = 1 << 16  # of a pass: more fill no GPU better, and make a block last long
SPARED = 0.8  # of the memory that is free when it is looked at; the rest is for fragments and for others


class CausalScorer:
    """Likelihoods by one model, at most `tokens_per_pass` tokens at once, or one longer span. What does not fit into
    memory is halved."""

    def __init__(self, model: PreTrainedModel, tokens_per_pass: int) -> None:
        self._model = model
        self._budget = tokens_per_pass
        self._flat = model.config._attn_implementation in KERNELS.values()
        self._by_length = [part for part in model.modules() if getattr(part, "rope_type", None) in LENGTH_DEPENDENT]
        # On a CPU the shape of the product with the head decides about last bits: it must be the span's own affair.
        self._span_by_span = model.device.type == "cpu" and not self._flat
        self._logits = hidden_to_logits(model)
        self._chunk = max(1, CHUNK_LOGITS // model.config.get_text_config().vocab_size)

    @property
    def window(self) -> int:
        """Tokens that the model's configuration allows; no bound where it names none."""
        config = self._model.config.get_text_config()
        named = (getattr(config, name, None) for name in WINDOWS)
        return next((longest for longest in named if isinstance(longest, int)), 2**31)

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        """One value a span, NaN where the model gives one; None where memory does not suffice for the span alone."""
        results: list[float | None] = [None] * len(spans)
        lengths = [len(span.tokens) for span in spans]
        budget = self._budget
        for members in next_fit(lengths, budget) if self._flat else padded_passes(lengths, budget, self._padded):
            values = self._nll_or_halves([spans[index] for index in members])
            for index, value in zip(members, values, strict=True):
                results[index] = value
        return results

    def _nll_or_halves(self, spans: Sequence[Span]) -> list[float | None]:
        try:
            return self._nll_of_pass(spans)
        except RuntimeError as why:
            if not is_out_of_memory(why):
                raise
        # Outside the handler: there the traceback still holds the tensors that filled the memory.
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(spans) == 1:
            return [None]
        middle = len(spans) // 2
        return self._nll_or_halves(spans[:middle]) + self._nll_or_halves(spans[middle:])

    def _padded(self, tokens: int) -> int:
        """The length that a span of so many tokens is padded to; never beyond the window, where positions end."""
        return tokens if self._by_length else min(bucket(tokens), max(tokens, self.window))

    @torch.inference_mode()
    def _nll_of_pass(self, spans: Sequence[Span]) -> list[float | None]:
        for rotary in self._by_length:
            _forget_lengths(rotary)
        inputs, starts = self._lay_flat(spans) if self._flat else self._pad(spans)
        hidden = self._model.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # [M, H]
        places = [
            np.arange(start + span.start, start + len(span.tokens)) for span, start in zip(spans, starts, strict=True)
        ]
        targets = inputs["input_ids"].flatten()  # [M]
        if self._span_by_span:
            losses = [self._losses(hidden, targets, own) for own in places]
        else:
            together = self._losses(hidden, targets, np.concatenate(places))
            losses = list(torch.split(together, [len(own) for own in places]))
        return [float(own.sum(dtype=torch.float64)) / len(own) for own in losses]

    def _losses(self, hidden: torch.Tensor, targets: torch.Tensor, places: np.ndarray[Any, Any]) -> torch.Tensor:
        """Nats of the tokens at `places`, each predicted from the place before it; on the CPU, where sums have one
        order."""
        losses = []
        for chunk in torch.split(torch.from_numpy(places).to(hidden.device), self._chunk):
            logits = self._logits(hidden[chunk - 1]).float()  # [P, V]
            losses.append(-torch.log_softmax(logits, dim=-1).gather(1, targets[chunk, None])[:, 0])
        return torch.cat(losses).cpu()

    def _lay_flat(self, spans: Sequence[Span]) -> tuple[dict[str, Any], Sequence[int]]:
        """The inputs of the model, and where each span begins in them."""
        row = packed_inputs([torch.tensor(span.tokens) for span in spans])
        inputs = {name: _to(value, self._model.device) for name, value in row.items()}
        return inputs, list(accumulate((len(span.tokens) for span in spans[:-1]), initial=0))

    def _pad(self, spans: Sequence[Span]) -> tuple[dict[str, Any], Sequence[int]]:
        length = self._padded(max(len(span.tokens) for span in spans))
        rows = [[*span.tokens, *[0] * (length - len(span.tokens))] for span in spans]
        # No mask: what is padded comes after everything that is predicted, and attention looks back only.
        return {"input_ids": torch.tensor(rows, device=self._model.device)}, range(0, len(rows) * length, length)


def set_scoring_attention(model: PreTrainedModel, asked: str) -> None:
    """For scoring: one kernel for whole flat rows where one was asked for, or works; elsewhere what the model has."""
    place = AttentionSpec.of(model, str(model.dtype).removeprefix("torch."))
    if asked in KERNELS:
        require_kernel(asked, place)
    kernel = KERNELS.get(asked) or (fused_kernel(place) if asked == "auto" else None)
    by_length = any(getattr(part, "rope_type", None) in LENGTH_DEPENDENT for part in model.modules())
    if kernel is None or (asked == "auto" and by_length):
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(kernel)
    try:
        require_isolation(model)
    except (
        ModelError,
        TypeError,
        ValueError,
        RuntimeError,
    ):  # of models that take no more than they know, or heads of odd shapes
        if asked != "auto":
            raise
        model.set_attn_implementation(before)


def padded_passes(lengths: Sequence[int], budget: int, padded: Callable[[int], int]) -> list[list[int]]:
    """The places of spans of the same padded length, as many at once as the budget has room for.

    >>> padded_passes([3, 40, 5, 6], 32, bucket)
    [[0, 2], [3], [1]]
    """
    buckets: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        buckets[padded(length)].append(index)
    passes = []
    for length, members in buckets.items():
        size = max(1, budget // length)
        passes += [members[first : first + size] for first in range(0, len(members), size)]
    return passes


def tokens_that_fit(peak_of: Callable[[int], int], free_bytes: int, longest: int) -> int:
    """How many tokens fit into `free_bytes`, from the peaks of two passes: memory grows with tokens along a line.
    `peak_of` gives the bytes that a pass of so many tokens takes, and may run out of memory."""
    first = peak_of(longest)
    try:
        more = peak_of(4 * longest)
    except torch.OutOfMemoryError:
        return longest
    bytes_per_token = max(1, (more - first) // (3 * longest))
    fixed = max(0, first - bytes_per_token * longest)
    fitting = int(SPARED * free_bytes - fixed) // bytes_per_token
    return max(longest, min(MAX_TOKENS_PER_PASS, fitting // 1024 * 1024))


def measured_tokens_per_pass(model: PreTrainedModel, max_length: int) -> int:
    """What fits into the memory of the model's GPU at this moment."""
    scorer = CausalScorer(model, MAX_TOKENS_PER_PASS)
    longest = min(max_length, scorer.window)
    span = Span(tuple(index % model.config.get_text_config().vocab_size for index in range(longest)), longest // 2)

    def peak_of(tokens: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        scorer._nll_of_pass([span] * (tokens // longest))
        return torch.cuda.max_memory_allocated(model.device) - before

    longest = _fitting(peak_of, longest)  # the first pass of a process takes more: libraries set themselves up
    torch.cuda.empty_cache()
    return tokens_that_fit(peak_of, torch.cuda.mem_get_info(model.device)[0], longest)


def _fitting(peak_of: Callable[[int], int], longest: int) -> int:
    """What fits of `longest`, a half of it, a quarter, ...; a row that does not is refused when it comes."""
    while longest > BUCKET_TOKENS:
        try:
            peak_of(longest)
            break
        except torch.OutOfMemoryError:
            longest //= 2
    return longest


def bucket(tokens: int) -> int:
    """The length that a span of so many tokens is padded to.

    >>> [bucket(tokens) for tokens in (1, 31, 32, 100)]
    [16, 32, 48, 112]
    """
    return (tokens // BUCKET_TOKENS + 1) * BUCKET_TOKENS


def _forget_lengths(rotary: Any) -> None:
    """What transformers has kept of the longest row so far: the next ones would be read as if they were as long."""
    if hasattr(rotary, "max_seq_len_cached"):
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.register_buffer("inv_freq", rotary.original_inv_freq.clone(), persistent=False)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
