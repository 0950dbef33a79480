"""The loss on held-out rows: micro-batches of them -> nats a learned token over all rows; and the history of these
losses, and of pass@1 on tasks, in a training, which says which step was the best and when to stop.

Rows do not see each other, whatever `train.pack_isolation` says, dropout is off, and no random number is drawn: the
training goes on as if there had been no evaluation. Several ranks share the rows; all have the same number of
micro-batches, because under FSDP and ZeRO each forward pass is a collective call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from accelerate.utils import send_to_device

from codetune.data.packing import PACKED, MicroBatchPlan
from codetune.data.token_cache import TokenCache
from codetune.model.plain_layers import evaluation_mode
from codetune.project.sections import PadMode
from codetune.training.batch_sampler import RankDataset
from codetune.training.collate import Collator, StepTensors
from codetune.training.loss import LossFunction

MICRO_BATCHES_AT_ONCE = 8  # of a rank, collated together


@dataclass(frozen=True, slots=True)
class BestWords:
    """What `train.keep_best` goes by, in the words of messages."""

    better: str
    of: str
    where: str


BEST = {
    "loss": BestWords("lower loss on the held-out rows", "the lowest held-out loss", "the held-out loss is lowest"),
    "pass@1": BestWords("higher pass@1 on train.tasks", "the highest pass@1", "pass@1 on train.tasks is highest"),
}


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The loss of one row, in nats, summed over its learned tokens."""

    id: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class RankEvaluation:
    """One evaluation, of one rank: the losses of its held-out rows, and the tasks that were judged there."""

    losses: Sequence[RowLoss] = ()
    passed: int = 0
    tasks: int = 0


@dataclass(frozen=True, slots=True)
class HoldoutHistory:
    """The evaluations of a training up to a step; checkpoints store it. The best one is that of the highest pass@1
    where there are tasks, else of the lowest loss; of equal ones the earliest."""

    last_loss: float | None = None  # nats a token
    best_loss: float | None = None  # at the best step
    best_step: int | None = None
    since_best: int = 0  # evaluations
    last_pass_rate: float | None = None
    best_pass_rate: float | None = None

    def plus(self, step: int, loss: float | None, pass_rate: float | None = None) -> Self:
        if self._is_best(loss, pass_rate):
            return type(self)(loss, loss, step, 0, pass_rate, pass_rate)
        return replace(self, last_loss=loss, last_pass_rate=pass_rate, since_best=self.since_best + 1)

    def _is_best(self, loss: float | None, pass_rate: float | None) -> bool:
        if pass_rate is not None:
            return self.best_pass_rate is None or pass_rate > self.best_pass_rate
        assert loss is not None  # something is measured
        return self.best_loss is None or loss < self.best_loss

    def is_exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row were no better."""
        return patience is not None and self.since_best >= patience


@dataclass(frozen=True, slots=True)
class HoldoutBatches:
    """A rank's share of the held-out rows, in micro-batches."""

    dataset: RankDataset
    collator: Collator
    order: list[int]  # of the rows: similar lengths together, so that little is padded
    at_once: int

    @classmethod
    def of(cls, token_cache: TokenCache, plan: MicroBatchPlan, rank: int, max_length: int, pad_token: int) -> Self:
        rows = range(len(token_cache))
        lengths = token_cache.lengths(rows)
        mode: PadMode = "dynamic_pack" if plan.pad_mode in PACKED else "dynamic_pad"
        return cls(
            RankDataset(token_cache, replace(plan, pad_mode=mode), rank),
            Collator(mode, max_length, True, pad_token),
            sorted(rows, key=lambda row: -lengths[row]),
            MICRO_BATCHES_AT_ONCE * plan.samples_per_micro_batch * plan.processes,
        )

    def __iter__(self) -> Iterator[StepTensors]:
        for first in range(0, len(self.order), self.at_once):
            yield self.collator(self.dataset.__getitems__(self.order[first : first + self.at_once]))


@torch.no_grad()
def row_losses(
    model: torch.nn.Module, loss_function: LossFunction, batches: HoldoutBatches, device: torch.device
) -> list[RowLoss]:
    """The loss of each row of this rank. `model` is the network, or the module that wraps it; it is left in the mode
    that it was in. The caller sets the precision of the arithmetic."""
    found = []
    with evaluation_mode(model):
        for batch in (batch for step in batches for batch in step["micro_batches"]):
            losses = loss_function(model, send_to_device(batch, device)).double().cpu()  # [N]
            ends = [0, *batch["row_ends"]]
            for row, first, end in zip(batch["rows"], ends[:-1], ends[1:], strict=True):
                found.append(RowLoss(row, float(losses[first:end].sum()), end - first))
    return found
