"""Who trains on what in which step: an order of the rows for each epoch, cut into steps of the global batch size.

It follows from seed, epoch and global batch size alone, so neither pad mode, accumulation nor the number of processes
changes it. Every row comes once an epoch; the last step of an epoch is smaller. Torch knows it as a batch sampler."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from codetune.project import Training


def samples_per_step(training: Training, processes: int) -> int:
    """The global batch size."""
    accumulated = training.per_device_batch_size * training.gradient_accumulation_steps * processes
    return training.global_batch_size or accumulated


def total_steps(training: Training, rows: int, processes: int) -> int:
    """Optimizer steps of the whole training."""
    steps = training.epochs * len(StepPlan(rows, samples_per_step(training, processes), seed=0))
    return steps if training.max_steps is None else min(steps, training.max_steps)


class StepPlan:
    """Yields what one process does of each optimizer step, for the epoch that was last set (transformers sets it). The
    rows of a step are dealt to the processes in turn; one that gets none in the last step of an epoch gets no row."""

    def __init__(self, rows: int, samples_per_step: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.rows, self.samples_per_step, self.seed = rows, samples_per_step, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.samples_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for start in range(0, self.rows, self.samples_per_step):
            yield order[start : start + self.samples_per_step][self.rank :: self.processes].tolist()
