"""Spans of tokens -> the mean negative log-likelihood of their predicted tokens, in nats, under a causal model.

On a GPU with a fused kernel spans are packed, without padding. Elsewhere a span is padded to a length that follows from
its own (`bucket`), and shares a pass only with spans of the same padded length. On a CPU its result then has the same
bits alone, in any batch and in any order, because the padded length decides them and the other spans do not. Logits
are computed for predicted positions only, in chunks; float32 log-probabilities are summed in double precision. Knows
nothing of instructions and answers: that is `selection/score.py`.

Axes: M tokens of a pass with padding, P predicted positions of a chunk, H width, V vocabulary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from codetune.data.packing import next_fit
from codetune.data.tokens import Span
from codetune.errors import ModelError
from codetune.launch.devices import is_out_of_memory
from codetune.model.attention import KERNELS, AttentionSpec, ModelInputs, fused_kernel, packed_inputs, require_kernel
from codetune.model.lm_head import hidden_to_logits
from codetune.model.load import load_model
from codetune.model.packing_check import require_isolation
from codetune.project.sections import Model

BUCKET_TOKENS = 16
WINDOW_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx")  # in configurations
# Rotary embeddings that depend on the length of the pass: each span gets a pass of its own length.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
CHUNK_LOGITS = 1 << 25  # float32 logits at once: 128 MiB
MAX_TOKENS_PER_PASS = 1 << 16  # more fill no GPU better, and make a block last long
MEMORY_FRACTION = 0.8  # of the free memory; the rest is for fragmentation and other processes


class CausalScorer:
    """Likelihoods by one model, at most `tokens_per_pass` tokens at once, or one longer span. A pass that does not fit
    into memory is halved."""

    def __init__(self, network: PreTrainedModel, tokens_per_pass: int) -> None:
        self._network = network
        self._budget = tokens_per_pass
        self._packed = network.config._attn_implementation in KERNELS.values()
        self._length_dependent = _length_dependent(network)
        # On a CPU the shape of the product with the head decides the last bits, so each span has a product of its own.
        self._span_by_span = network.device.type == "cpu" and not self._packed
        self._logits = hidden_to_logits(network)
        self._chunk = max(1, CHUNK_LOGITS // network.config.get_text_config().vocab_size)

    @property
    def window(self) -> int:
        """The longest span that the model's configuration allows, in tokens; 2^31 if it names no limit."""
        config = self._network.config.get_text_config()
        named = (getattr(config, name, None) for name in WINDOW_NAMES)
        return next((longest for longest in named if isinstance(longest, int)), 2**31)

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        """One value for each span: NaN if the model computes NaN, None if the span alone does not fit into memory."""
        return [None if losses is None else mean_nll(losses) for losses in self.token_nll(spans)]

    def token_nll(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """The nats of each predicted token of each span, in float32 and on the CPU; None if the span alone does not fit
        into memory."""
        results: list[torch.Tensor | None] = [None] * len(spans)
        lengths = [len(span.tokens) for span in spans]
        budget = self._budget
        passes = next_fit(lengths, budget) if self._packed else padded_passes(lengths, budget, self._padded_length)
        for members in passes:
            values = self._losses_or_halves([spans[index] for index in members])
            for index, value in zip(members, values, strict=True):
                results[index] = value
        return results

    def _losses_or_halves(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        try:
            return list(self._losses_of_pass(spans))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback keeps the tensors.
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(spans) == 1:
            return [None]
        middle = len(spans) // 2
        return self._losses_or_halves(spans[:middle]) + self._losses_or_halves(spans[middle:])

    def _padded_length(self, tokens: int) -> int:
        """The length that a span of so many tokens is padded to; not beyond the window, where positions end."""
        return tokens if self._length_dependent else min(bucket(tokens), max(tokens, self.window))

    @torch.inference_mode()
    def _losses_of_pass(self, spans: Sequence[Span]) -> list[torch.Tensor]:
        for rotary in self._length_dependent:
            _reset_length(rotary)
        inputs, offsets = self._pack(spans) if self._packed else self._pad(spans)
        hidden = self._network.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # [M, H]
        predicted = [
            torch.arange(offset + span.start, offset + len(span.tokens))
            for span, offset in zip(spans, offsets, strict=True)
        ]
        targets = inputs["input_ids"].flatten()  # [M]
        if self._span_by_span:
            return [self._losses(hidden, targets, positions) for positions in predicted]
        together = self._losses(hidden, targets, torch.cat(predicted))
        return list(torch.split(together, [len(positions) for positions in predicted]))

    def _losses(self, hidden: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The nats of the tokens at `positions`, each predicted from the position before it, from hidden states [M, H]
        and token ids [M]. On the CPU, where sums have one order."""
        losses = []
        for chunk in torch.split(positions.to(hidden.device), self._chunk):
            logits = self._logits(hidden[chunk - 1]).float()  # [P, V]
            losses.append(-torch.log_softmax(logits, dim=-1).gather(1, targets[chunk, None])[:, 0])
        return torch.cat(losses).cpu()

    def _pack(self, spans: Sequence[Span]) -> tuple[ModelInputs, Sequence[int]]:
        """The inputs of the network, and the offset of each span in them."""
        row = packed_inputs([torch.tensor(span.tokens) for span in spans])
        inputs = {name: _to(value, self._network.device) for name, value in row.items()}
        return inputs, list(accumulate((len(span.tokens) for span in spans[:-1]), initial=0))

    def _pad(self, spans: Sequence[Span]) -> tuple[ModelInputs, Sequence[int]]:
        """The inputs of the network, and the offset of each span in them, flattened."""
        length = self._padded_length(max(len(span.tokens) for span in spans))
        rows = [[*span.tokens, *[0] * (length - len(span.tokens))] for span in spans]
        # No mask: padding comes after all predicted tokens, and attention is causal.
        return {"input_ids": torch.tensor(rows, device=self._network.device)}, range(0, len(rows) * length, length)


def mean_nll(losses: torch.Tensor) -> float:
    """The mean of the nats of tokens, summed in double precision."""
    return float(losses.sum(dtype=torch.float64)) / len(losses)


def load_scoring_model(path: Path, model: Model, device: str) -> PreTrainedModel:
    """The network on `device`, with the attention for scoring. Raises as `load_model` and `set_scoring_attention`."""
    network = load_model(path, model, device)
    set_scoring_attention(network, model.attention)
    return network


def set_scoring_attention(network: PreTrainedModel, asked: str) -> None:
    """Sets a fused kernel for packed rows if `asked` names one, or if it is `auto` and one works; otherwise leaves the
    network's attention. Raises ModelError for a kernel that is asked for and cannot work, or does not isolate spans."""
    spec = AttentionSpec.of(network, str(network.dtype).removeprefix("torch."))
    if asked in KERNELS:
        require_kernel(asked, spec)
    kernel = KERNELS.get(asked) or (fused_kernel(spec) if asked == "auto" else None)
    if kernel is None or (asked == "auto" and _length_dependent(network)):
        return
    before = network.config._attn_implementation
    network.set_attn_implementation(kernel)
    try:
        require_isolation(network)
    # Some architectures refuse unknown arguments; kernels refuse heads of odd shapes.
    except (ModelError, TypeError, ValueError, RuntimeError):
        if asked != "auto":
            raise
        network.set_attn_implementation(before)


def padded_passes(lengths: Sequence[int], budget: int, padded: Callable[[int], int]) -> list[list[int]]:
    """The indices of spans of the same padded length, as many in one pass as fit into the budget.

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


def bucket(tokens: int) -> int:
    """The length that a span of so many tokens is padded to.

    >>> [bucket(tokens) for tokens in (1, 31, 32, 100)]
    [16, 32, 48, 112]
    """
    return (tokens // BUCKET_TOKENS + 1) * BUCKET_TOKENS


def measured_tokens_per_pass(network: PreTrainedModel, max_length: int) -> int:
    """The tokens of a pass that fits into the free memory of the network's GPU, found by running passes."""
    scorer = CausalScorer(network, MAX_TOKENS_PER_PASS)
    longest = min(max_length, scorer.window)
    span = Span(tuple(index % network.config.get_text_config().vocab_size for index in range(longest)), longest // 2)

    def peak_bytes(tokens: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(network.device)
        before = torch.cuda.memory_allocated(network.device)
        scorer._losses_of_pass([span] * (tokens // longest))
        return torch.cuda.max_memory_allocated(network.device) - before

    longest = _halved_until_it_fits(peak_bytes, longest)  # the first pass takes more: libraries allocate workspaces
    torch.cuda.empty_cache()
    return tokens_that_fit(peak_bytes, torch.cuda.mem_get_info(network.device)[0], longest)


def tokens_that_fit(peak_bytes: Callable[[int], int], free_bytes: int, longest: int) -> int:
    """The number of tokens that fit into `free_bytes`, from the peaks of two passes: memory grows linearly with tokens.
    `peak_bytes` runs a pass of so many tokens, and may raise OutOfMemoryError."""
    first = peak_bytes(longest)
    try:
        more = peak_bytes(4 * longest)
    except torch.OutOfMemoryError:
        return longest
    bytes_per_token = max(1, (more - first) // (3 * longest))
    fixed = max(0, first - bytes_per_token * longest)
    fitting = int(MEMORY_FRACTION * free_bytes - fixed) // bytes_per_token
    return max(longest, min(MAX_TOKENS_PER_PASS, fitting // 1024 * 1024))


def _halved_until_it_fits(peak_bytes: Callable[[int], int], longest: int) -> int:
    """The first of `longest`, its half, its quarter, ... that fits. A longer row is refused when it comes."""
    while longest > BUCKET_TOKENS:
        try:
            peak_bytes(longest)
            break
        except torch.OutOfMemoryError:
            longest //= 2
    return longest


def _length_dependent(network: PreTrainedModel) -> list[torch.nn.Module]:
    return [part for part in network.modules() if getattr(part, "rope_type", None) in LENGTH_DEPENDENT_ROPE]


def _reset_length(rotary: Any) -> None:
    """Discards the longest length so far, which transformers would apply to the next pass as well."""
    if hasattr(rotary, "max_seq_len_cached"):
        rotary.max_seq_len_cached = rotary.original_max_seq_len
        rotary.register_buffer("inv_freq", rotary.original_inv_freq.clone(), persistent=False)


def _to(value: object, device: torch.device) -> object:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
