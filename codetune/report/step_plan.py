"""Lengths of samples -> the steps of a training as it would cut them: padding rate of every pad mode, and the largest
micro-batch. Goes through the first epochs with the sampler and the packing that the training itself uses; reads no
tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from codetune.data.packing import MicroBatchPlan, pack, split_into_micro_batches
from codetune.data.token_cache import TokenCache
from codetune.project.sections import PadMode, Training
from codetune.training.batch_sampler import StepSampler, samples_per_step
from codetune.training.memory import LargestMicroBatch

SIMULATED_EPOCHS = 3  # the padding of an epoch differs by half a point from that of another


@dataclass(frozen=True, slots=True)
class SampleLengths:
    """The tokens of each sample, and how many of them are learned."""

    tokens: NDArray[np.int64]  # [samples]
    learned: NDArray[np.int64]  # [samples]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, cache: TokenCache) -> Self:
        learned = np.add.reduceat(np.asarray(cache.stored) < 0, cache.offsets[:-1], dtype=np.int64)
        return cls(np.diff(cache.offsets), learned)

    def of_rows(self, rows: Sequence[int]) -> Self:
        return replace(self, tokens=self.tokens[rows], learned=self.learned[rows])


@dataclass(frozen=True, slots=True)
class EpochsPlan:
    """The first epochs of a training."""

    padding_rates: Mapping[PadMode, float]
    largest: LargestMicroBatch  # in the project's own pad mode


def plan_epochs(lengths: SampleLengths, training: Training, processes: int, seed: int, hidden_size: int) -> EpochsPlan:
    """As `processes` ranks would go through them; `SIMULATED_EPOCHS` at most."""
    steps = StepSampler(len(lengths), samples_per_step(training, processes), seed)
    samples, sort = training.per_device_batch_size, training.sort_in_step
    rates, largest = dict[PadMode, float](), LargestMicroBatch(0, 0)
    epochs = min(training.epochs, SIMULATED_EPOCHS)
    for mode in get_args(PadMode):
        plan, seen = MicroBatchPlan(mode, samples, processes, sort, hidden_size), 0
        for epoch in range(epochs):
            steps.set_epoch(epoch)
            for tokens, learned in chain.from_iterable(
                _micro_batches(lengths, rows, plan, training.max_length) for rows in steps
            ):
                seen += tokens
                if mode == training.pad_mode and tokens > largest.tokens:
                    largest = LargestMicroBatch(tokens, learned)
        rates[mode] = 1 - epochs * int(lengths.tokens.sum()) / seen
    return EpochsPlan(rates, largest)


def _micro_batches(
    lengths: SampleLengths, rows: Sequence[int], plan: MicroBatchPlan, max_length: int
) -> list[tuple[int, int]]:
    """Tokens with padding, and learned tokens, of each micro-batch of a step."""
    tokens, learned = lengths.tokens[rows].tolist(), lengths.learned[rows].tolist()
    found = []
    for rank in split_into_micro_batches(tokens, plan):
        for batch in filter(None, rank):
            real = [tokens[index] for index in batch]
            padding = sum(row.padding for row in pack(real, plan.pad_mode, max_length))
            found.append((sum(real) + padding, sum(learned[index] for index in batch)))
    return found
