"""The samples that each rank trains on in each optimizer step: a permutation of the rows for each epoch, cut into steps
of the global batch size; each step is split into micro-batches of each rank.

The order follows from the seed, the epoch and the global batch size alone, not from pad mode, accumulation or the
number of ranks. Each row is drawn once an epoch; the last step of an epoch may be smaller. `StepSampler` is a batch
sampler and `RankDataset` a map-style data set for torch's `DataLoader`."""

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


def steps_per_epoch(training: Training, rows: int, processes: int) -> int:
    return len(StepSampler(rows, samples_per_step(training, processes), seed=0))


def evaluation_steps(training: Training, rows: int, processes: int) -> int:
    """Optimizer steps between two evaluations on the held-out rows."""
    return training.evaluate_steps or steps_per_epoch(training, rows, processes)


def total_steps(training: Training, rows: int, processes: int) -> int:
    """Optimizer steps of the whole training."""
    steps = training.epochs * steps_per_epoch(training, rows, processes)
    return steps if training.max_steps is None else min(steps, training.max_steps)


class StepSampler:
    """Yields the row indices of one optimizer step after the other, for the epoch of the last `set_epoch` (which
    accelerate's data loader calls). All ranks yield the same."""

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


class RankDataset:
    """Row indices of a step -> the micro-batches of the rank `rank`. Rows are read only when a step is asked for, so a
    resumed training skips a million steps in a moment."""

    def __init__(self, token_cache: TokenCache, plan: MicroBatchPlan, rank: int) -> None:
        self._token_cache, self._plan, self._rank = token_cache, plan, rank

    def __len__(self) -> int:
        return len(self._token_cache)

    def __getitems__(self, rows: Sequence[int]) -> list[list[Sample]]:
        """`DataLoader` calls this with all indices of a batch at once."""
        micro_batches = split_into_micro_batches(self._token_cache.lengths(rows), self._plan)[self._rank]
        return [[self._token_cache[rows[index]] for index in micro_batch] for micro_batch in micro_batches]
