"""What a finished training came to, over all calls that continued it: figures for the manifest and the result."""

from __future__ import annotations

from dataclasses import dataclass

from codetune.data.token_cache import TokenCache, TokenizedRows
from codetune.records import Refusal
from codetune.training.callbacks import TrainingCallbacks
from codetune.training.parallelism import ParallelStrategy, StrategyChoice
from codetune.training.tasks_apart import TaskMeasure


@dataclass(frozen=True, slots=True)
class HoldoutSummary:
    """The loss of the saved model on the held-out rows, in nats a token, and the step that its weights are of."""

    rows: int
    refused: int  # dropped, as they would be in training
    loss: float | None
    step: int
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class TasksSummary:
    """pass@1 of the saved model on the tasks that are kept apart, and the step that its weights are of."""

    tasks: int
    pass_rate: float | None
    step: int
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """Sums over all calls that continued one training. `last_loss` is that of the last step."""

    rows: int
    dropped: tuple[Refusal, ...]
    truncated_rows: int
    lost_tokens: int
    lost_share: float  # of all tokens of the rows that were kept
    steps: int
    tokens: int
    padding_rate: float
    seconds: float
    peak_memory_bytes: int | None
    mfu: float | None
    last_loss: float | None
    processes: int
    strategy: ParallelStrategy
    strategy_because: str
    holdout: HoldoutSummary | None
    tasks_apart: TasksSummary | None


def summarize(
    token_cache: TokenCache,
    rows: TokenizedRows,
    callbacks: TrainingCallbacks,
    choice: StrategyChoice,
    processes: int,
    holdout: tuple[TokenCache | None, TokenizedRows],
    tasks: TaskMeasure | None,
) -> TrainingSummary:
    total = callbacks.metrics.since_start
    return TrainingSummary(
        rows=len(token_cache),
        dropped=tuple(rows.dropped),
        truncated_rows=rows.truncated_rows,
        lost_tokens=rows.lost_tokens,
        lost_share=rows.lost_tokens / (token_cache.tokens + rows.lost_tokens),
        steps=callbacks.step,
        tokens=total.tokens,
        padding_rate=total.padding_rate,
        seconds=total.seconds,
        peak_memory_bytes=callbacks.metrics.peak_memory_bytes,
        mfu=total.mfu,
        last_loss=callbacks.metrics.last_loss,
        processes=processes,
        strategy=choice.strategy,
        strategy_because=choice.reason,
        holdout=_holdout_summary(*holdout, callbacks),
        tasks_apart=_tasks_summary(tasks, callbacks),
    )


def _holdout_summary(
    token_cache: TokenCache | None, rows: TokenizedRows, callbacks: TrainingCallbacks
) -> HoldoutSummary | None:
    history = callbacks.metrics.holdout
    if token_cache is None or history is None:
        return None
    loss = history.last_loss if callbacks.kept_step == callbacks.step else history.best_loss
    stopped_early = callbacks.step < callbacks.total_steps
    return HoldoutSummary(len(token_cache), len(rows.dropped), loss, callbacks.kept_step, stopped_early)


def _tasks_summary(tasks: TaskMeasure | None, callbacks: TrainingCallbacks) -> TasksSummary | None:
    history = callbacks.metrics.holdout
    if tasks is None or history is None:
        return None
    rate = history.last_pass_rate if callbacks.kept_step == callbacks.step else history.best_pass_rate
    return TasksSummary(tasks.count, rate, callbacks.kept_step, callbacks.step < callbacks.total_steps)
