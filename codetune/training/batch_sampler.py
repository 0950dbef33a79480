"""Who trains on what in which step: an order of the rows for each epoch, cut into steps of the global batch size, and
each step dealt to processes and micro-batches.

The order follows from seed, epoch and global batch size alone, so neither pad mode, accumulation nor the number of
processes changes which samples make up a step. Every row comes once an epoch; the last step of an epoch is smaller.
Torch knows the plan as a batch sampler, and a process's share of the steps as a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from codetune.data.packing import MicroBatchPlan, split_into_micro_batches
from codetune.data.token_cache import Sample, TokenCache
from codetune.project.sections import Training


def samples_per_step(training: Training, processes: int) -> int:
    """The global batch size."""
    accumulated = training.per_device_batch_size * training.gradient_accumulation_steps * processes
    return training.global_batch_size or accumulated


def total_steps(training: Training, rows: int, processes: int) -> int:
    """Optimizer steps of the whole training."""
    steps = training.epochs * len(StepPlan(rows, samples_per_step(training, processes), seed=0))
    return steps if training.max_steps is None else min(steps, training.max_steps)


class StepPlan:
    """Yields the rows of one optimizer step after the other, for the epoch that was last set (transformers sets it).
    It is the same in every process."""

    def __init__(self, rows: int, samples_per_step: int, seed: int) -> None:
        self.rows, self.samples_per_step, self.seed = rows, samples_per_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.samples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for start in range(0, self.rows, self.samples_per_step):
            yield order[start : start + self.samples_per_step].tolist()


class Share:
    """The rows of a step -> the micro-batches of the process `rank`. Dealt only when asked for, so that a continued
    training skips a million steps in no time."""

    def __init__(self, token_cache: TokenCache, plan_of_batches: MicroBatchPlan, rank: int) -> None:
        self._corpus, self._micro_batch_plan, self._rank = token_cache, plan_of_batches, rank

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitems__(self, rows: Sequence[int]) -> list[list[Sample]]:
        """What torch's loader calls with everything that the plan yielded at once."""
        batches = split_into_micro_batches(self._corpus.lengths(rows), self._micro_batch_plan)[self._rank]
        return [[self._corpus[rows[position]] for position in batch] for batch in batches]
