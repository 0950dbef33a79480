"""The course of a training: what is due at the end of each step (a line of metrics, a checkpoint, an end), and what
came of it all. Holds the only state that changes while the Trainer runs; a checkpoint takes it along.

Each process has one, and at the end of a step they agree: on the sums of what all of them did, and on what is due. The
first one writes and tells."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codetune.launch.process_group import ProcessGroup
from codetune.project.sections import Training
from codetune.training.checkpoint import Checkpoint, Facts, prune_checkpoints, seal_checkpoint
from codetune.training.metrics import Line, Meter, StepFacts, append_line, cut

Report = Callable[[Mapping[str, float | None]], None]


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done at the end of a step."""

    save: bool
    stop: bool
    line: Line | None  # of metrics, written already; for whoever else wants to hear of it


class Course:
    def __init__(
        self, settings: Training, directory: Path, facts: Facts, steps: int, report: Report, ranks: ProcessGroup
    ) -> None:
        self.steps, self.step, self.meter = steps, 0, Meter()
        self.interrupted = False
        self._settings, self._directory, self._facts, self._report = settings, directory, facts, report
        self._ranks = ranks
        self.saves_last = True  # whether a checkpoint of the last step can be continued: the model made of it
        self._last_saved = time.monotonic()

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """From the checkpoint, or from nothing; lines of metrics behind it are dropped."""
        if checkpoint is not None:
            self.step, self.meter = checkpoint.step, Meter.restored(checkpoint.meter)
        if self._ranks.is_first:
            cut(self._metrics, self.step)

    def on_step(self, step: int, epoch: float, facts: StepFacts) -> Due:
        """The same in every process, but for the line, which the first one writes."""
        self.step = step
        facts = self._of_all(facts)
        # By the clock of the first process, for those of two machines differ. One interrupted process stops all.
        saves = self._ranks.is_first and self._is_save_due()
        peak, interrupted, due = self._ranks.max([peak_memory_bytes(), self.interrupted, saves])
        # In the last step there is nothing left to stop: what remains is to save the model.
        self.interrupted = bool(interrupted) and step < self.steps
        self.meter = self.meter.plus(facts, int(peak) or None)
        line = None
        if step % self._settings.logging_steps == 0 or step == self.steps:
            line = self.meter.line(step, epoch)
            self.meter = self.meter.after_line()
        if self._ranks.is_first:
            shown = {"loss": facts.loss, "learning_rate": facts.learning_rate, "grad_norm": facts.grad_norm}
            self._report({"step": step, "steps": self.steps, "epoch": epoch, **shown})
            if line is not None:
                append_line(self._metrics, line)
        return Due(self.interrupted or bool(due), self.interrupted, line)

    def on_saved(self, path: Path, step: int) -> None:
        """The checkpoint counts when every process has written its part; none goes on before it does."""
        self._ranks.barrier()
        if self._ranks.is_first:
            seal_checkpoint(path, step, self._facts, self.meter.state())
            prune_checkpoints(self._directory, self._settings.keep_checkpoints)
        self._ranks.barrier()
        self._last_saved = time.monotonic()

    def _of_all(self, facts: StepFacts) -> StepFacts:
        """A process knows its own part of the step's loss, tokens and operations."""
        shared = ("loss", "tokens", "tokens_seen", "samples", "operations", "possible_operations")
        own = [getattr(facts, name) for name in shared]
        sums = [type(amount)(total) for amount, total in zip(own, self._ranks.sum(own), strict=True)]
        return replace(facts, **dict(zip(shared, sums, strict=True)))

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a checkpoint and an end after the step at hand; the second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals to the main thread only
            return
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(number, earlier[signal.Signals(number)])

        for number in earlier:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    @property
    def _metrics(self) -> Path:
        return self._directory / "metrics.jsonl"

    def _is_save_due(self) -> bool:
        if self.step == self.steps and not self.saves_last:
            return False
        every, minutes = self._settings.save_steps, self._settings.save_minutes
        if every is not None and self.step % every == 0:
            return True
        # The end needs none: the model itself is saved then.
        waited = time.monotonic() - self._last_saved
        return minutes is not None and waited >= 60 * minutes and self.step < self.steps


def peak_memory_bytes() -> int:
    """Of this process' GPU; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
