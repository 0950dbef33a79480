"""The end of each optimizer step: the ranks sum their metrics and agree, by all-reduce, whether a checkpoint is due and
whether an interruption ends the training. Rank 0 alone writes files and reports progress.

Each rank has one `TrainingCallbacks`, the only state that changes while the Trainer runs; a checkpoint stores it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import torch

from codetune.errors import CodetuneError
from codetune.launch.process_group import ProcessGroup
from codetune.project.sections import Training
from codetune.store.run_directory import METRICS
from codetune.training.checkpoint import Checkpoint, Fingerprint, prune_checkpoints, seal_checkpoint
from codetune.training.holdout import HoldoutHistory, RankEvaluation
from codetune.training.metrics import MetricAccumulator, MetricsLine, StepMetrics, append_metrics, truncate_metrics

ProgressReport = Callable[[Mapping[str, float | None]], None]
NoticeKind = Literal["activity", "note", "warning"]  # what goes on before the first step; what is worth a line
Notify = Callable[[NoticeKind, str], None]
Evaluate = Callable[[], RankEvaluation]
PASS_RATE = "pass@1"  # in a line of metrics
# Each rank knows these of its own part of a step; the learning rate, the norm and the time are the same in all.
SUMMED_OVER_RANKS = ("loss", "tokens", "tokens_seen", "samples", "flops", "peak_flops")


@dataclass(frozen=True, slots=True)
class StepControl:
    """The actions at the end of a step; the same in all ranks."""

    should_save: bool
    should_stop: bool
    metrics: MetricsLine | None  # where a line is due; rank 0 has written it


class TrainingCallbacks:
    """`saves_last_step` says whether a resumed training could make the model of a checkpoint of the last step;
    `evaluation_steps` are those between two evaluations on held-out rows or tasks, None where there are neither."""

    def __init__(
        self,
        settings: Training,
        directory: Path,
        fingerprint: Fingerprint,
        total_steps: int,
        report: ProgressReport,
        group: ProcessGroup,
        saves_last_step: bool = True,
        evaluation_steps: int | None = None,
    ) -> None:
        self.total_steps, self.step = total_steps, 0
        self.metrics = MetricAccumulator(holdout=HoldoutHistory() if evaluation_steps else None)
        self.interrupted = False
        self._settings, self._directory, self._fingerprint = settings, directory, fingerprint
        self._report, self._group, self._saves_last_step = report, group, saves_last_step
        self._last_saved, self._evaluation_steps = time.monotonic(), evaluation_steps

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done: that of the settings, or an earlier one where patience is exhausted."""
        return self.step >= self.total_steps or self.stops_early

    @property
    def stops_early(self) -> bool:
        holdout = self.metrics.holdout
        return holdout is not None and holdout.is_exhausted(self._settings.patience)

    @property
    def best_step(self) -> int | None:
        """The step whose weights are kept instead of the last ones; None where there is none."""
        holdout = self.metrics.holdout
        return holdout.best_step if holdout is not None and self._settings.keep_best is not None else None

    @property
    def kept_step(self) -> int:
        """The step whose weights are kept."""
        return self.best_step or self.step

    def on_train_begin(self, checkpoint: Checkpoint | None) -> None:
        """Continues the sums of the checkpoint; drops lines of metrics after it."""
        if checkpoint is not None:
            self.step, self.metrics = checkpoint.step, MetricAccumulator.restored(checkpoint.metrics)
        if self._group.is_first:
            truncate_metrics(self._metrics_file, self.step)

    def on_step_end(self, step: int, epoch: float, rank_metrics: StepMetrics, evaluate: Evaluate) -> StepControl:
        """`evaluate` gives this rank's part of an evaluation."""
        self.step = step
        metrics = self._over_ranks(rank_metrics)
        evaluated = self._evaluate(evaluate)
        # The clock of rank 0 decides, because clocks of two machines differ. One interrupted rank stops all.
        saves = self._group.is_first and self._is_save_due()
        peak, interrupted, should_save = self._group.max([torch.cuda.max_memory_allocated(), self.interrupted, saves])
        # After the last step there is nothing to stop: the model is to be saved.
        self.interrupted = bool(interrupted) and not self.is_finished
        self.metrics = self.metrics.plus(metrics, int(peak) or None)
        line = None
        if step % self._settings.logging_steps == 0 or self.is_finished:
            line = self.metrics.line(step, epoch)
            self.metrics = self.metrics.after_line()
        if evaluated:
            line = {**(line or {"step": step, "epoch": epoch}), **evaluated}
        if self._group.is_first:
            shown = {"loss": metrics.loss, "learning_rate": metrics.learning_rate, "grad_norm": metrics.grad_norm}
            self._report({"step": step, "steps": self.total_steps, "epoch": epoch, **shown})
            if line is not None:
                append_metrics(self._metrics_file, line)
        # The weights that may be kept are needed again; those of the last step are there.
        should_save = should_save or (bool(evaluated) and self.best_step == step and not self.is_finished)
        return StepControl(self.interrupted or bool(should_save), self.interrupted or self.stops_early, line)

    def on_save(self, path: Path, step: int) -> None:
        """Seals the checkpoint once every rank has written its part; returns in all ranks when it is sealed."""
        self._group.barrier()
        if self._group.is_first:
            seal_checkpoint(path, step, self._fingerprint, self.metrics.state())
            prune_checkpoints(self._directory, self._settings.keep_checkpoints, self.best_step)
        self._group.barrier()
        self._last_saved = time.monotonic()

    @contextmanager
    def interruptible(self, announce: Callable[[], None]) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks for a checkpoint and an end after the current step; the second one ends the
        process at once. A step can take a minute: at the first one, `announce` is called by another thread."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        received = SimpleQueue[bool]()  # a signal handler may put into it, wherever it has stopped the main thread

        def interrupt(number: int, frame: object) -> None:
            self.interrupted = True
            signal.signal(number, earlier[signal.Signals(number)])
            received.put(True)

        announcer = threading.Thread(target=lambda: announce() if received.get() else None, daemon=True)
        announcer.start()
        for number in earlier:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            received.put(False)
            announcer.join()

    @property
    def _metrics_file(self) -> Path:
        return self._directory / METRICS

    def _evaluate(self, evaluate: Evaluate) -> MetricsLine:
        """The held-out loss and pass@1 for the line of this step; empty where no evaluation is due. Raises
        CodetuneError where the loss is not finite."""
        is_due = self._evaluation_steps and (self.step % self._evaluation_steps == 0 or self.step == self.total_steps)
        if not is_due or self.metrics.holdout is None:
            return {}
        found = evaluate()
        own = [
            sum(row.nats for row in found.losses),
            sum(row.tokens for row in found.losses),
            found.passed,
            found.tasks,
        ]
        nats, tokens, passed, tasks = self._group.sum(own)
        if not math.isfinite(nats):
            raise CodetuneError(
                f"The loss on the held-out rows is not a finite number after step {self.step} of {self.total_steps}. "
                "Expected: a finite number. Lower train.learning_rate, or set model.dtype: float32"
            )
        loss, pass_rate = nats / tokens if tokens else None, passed / tasks if tasks else None
        self.metrics = replace(self.metrics, holdout=self.metrics.holdout.plus(self.step, loss, pass_rate))
        line = {"holdout_loss": loss, PASS_RATE: pass_rate}
        return {name: value for name, value in line.items() if value is not None}

    def _over_ranks(self, metrics: StepMetrics) -> StepMetrics:
        own = [getattr(metrics, name) for name in SUMMED_OVER_RANKS]
        sums = [type(value)(total) for value, total in zip(own, self._group.sum(own), strict=True)]
        return replace(metrics, **dict(zip(SUMMED_OVER_RANKS, sums, strict=True)))

    def _is_save_due(self) -> bool:
        is_last, every, minutes = self.is_finished, self._settings.save_steps, self._settings.save_minutes
        if every is not None and self.step % every == 0:
            return self._saves_last_step or not is_last
        # After the last step the model itself is saved.
        return minutes is not None and time.monotonic() - self._last_saved >= 60 * minutes and not is_last
