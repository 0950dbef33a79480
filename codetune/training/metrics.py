"""Running sums of a training, and the lines of `train/metrics.jsonl` that they become.

A line holds the means over the steps since the line before it. The sums are part of every checkpoint, and `cut` drops
the lines behind it, so a continued training writes each line once. Throughput counts real tokens, not padding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

Line = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What one optimizer step was."""

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_seen: int  # padding included
    samples: int
    seconds: float
    operations: float  # floating-point ones, without padding and without what is recomputed
    possible_operations: float  # of the card in that time; 0 where neither is known


@dataclass(frozen=True, slots=True)
class Sums:
    steps: int = 0
    loss: float = 0.0
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    tokens_seen: int = 0
    samples: int = 0
    seconds: float = 0.0
    operations: float = 0.0
    possible_operations: float = 0.0

    def plus(self, step: StepFacts) -> Self:
        return replace(
            self, steps=self.steps + 1, **{name: getattr(self, name) + amount for name, amount in asdict(step).items()}
        )

    @property
    def padding_rate(self) -> float:
        return 1 - self.tokens / self.tokens_seen if self.tokens_seen else 0.0

    @property
    def mfu(self) -> float | None:
        return self.operations / self.possible_operations if self.possible_operations else None


@dataclass(frozen=True, slots=True)
class Meter:
    """Sums since the last line and since the beginning."""

    since_line: Sums = Sums()
    since_start: Sums = Sums()
    peak_memory_bytes: int | None = None
    last_loss: float | None = None

    def plus(self, step: StepFacts, peak_memory_bytes: int | None) -> Self:
        peaks = [peak for peak in (self.peak_memory_bytes, peak_memory_bytes) if peak is not None]
        return replace(
            self,
            since_line=self.since_line.plus(step),
            since_start=self.since_start.plus(step),
            peak_memory_bytes=max(peaks, default=None),
            last_loss=step.loss,
        )

    def line(self, step: int, epoch: float) -> Line:
        sums = self.since_line
        return {
            "step": step,
            "epoch": epoch,
            "loss": sums.loss / sums.steps,
            "learning_rate": sums.learning_rate / sums.steps,
            "grad_norm": sums.grad_norm / sums.steps,
            "tokens_per_second": sums.tokens / sums.seconds,
            "samples_per_second": sums.samples / sums.seconds,
            "padding_rate": sums.padding_rate,
            "peak_memory_bytes": self.peak_memory_bytes,
            "mfu": sums.mfu,
            "seconds": sums.seconds,
        }

    def after_line(self) -> Self:
        return replace(self, since_line=Sums())

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Self:
        sums = {name: Sums(**state[name]) for name in ("since_line", "since_start")}
        return cls(**sums, peak_memory_bytes=state["peak_memory_bytes"], last_loss=state["last_loss"])


def append_line(path: Path, line: Line) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def cut(path: Path, last_step: int) -> None:
    """Drops the lines behind `last_step`, and one that was cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > last_step:
            break
        kept.append(line)
    scratch = path.with_name(path.name + ".new")
    scratch.write_text("".join(kept), encoding="utf-8")
    scratch.replace(path)
