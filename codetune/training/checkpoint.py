"""Checkpoints: `train/checkpoint-STEP/`, as the Trainer writes them, sealed by us when they are whole.

The manifest (`codetune.json`) is written last. It names every file with its size (the Trainer would go on without a word
where the optimizer's is missing), the facts that a continued training must share (it would not notice other data
either), and the running sums of the metrics. A directory without a manifest was cut off, and is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetune.errors import StaleError

SEAL = "codetune.json"
STEP_SAMPLES, SHARING = "samples of a step", "launch.strategy"  # facts that follow from how it was launched
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    path: Path
    facts: Facts
    meter: Mapping[str, Any]
    files: Mapping[str, int]  # bytes


def last_checkpoint(directory: Path, facts: Facts) -> Checkpoint | None:
    """The newest whole checkpoint, after a check that it belongs to this training."""
    found = max(_sealed(directory), key=lambda checkpoint: checkpoint.step, default=None)
    if found is not None:
        _require_same(found, json.loads(json.dumps(facts)))
        _require_whole(found)
    return found


def sealed_checkpoints(directory: Path) -> list[Checkpoint]:
    """Those that are whole, in the order of their steps; removes nothing."""
    return sorted(_sealed(directory), key=lambda checkpoint: checkpoint.step)


def remove_torn(directory: Path) -> None:
    """What a crash left: checkpoints without a manifest."""
    for leftover in directory.glob("checkpoint-*"):
        if not (leftover / SEAL).exists():
            shutil.rmtree(leftover)


def seal_checkpoint(path: Path, step: int, facts: Facts, meter: Mapping[str, Any]) -> None:
    """From here on the checkpoint counts, also after a loss of power."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        _flush(file)
    record = {
        "step": step,
        "facts": facts,
        "meter": meter,
        "files": {str(file.relative_to(path)): file.stat().st_size for file in files},
    }
    scratch = path / f"{SEAL}.new"
    scratch.write_text(json.dumps(record, indent=1), encoding="utf-8")
    _flush(scratch)
    scratch.replace(path / SEAL)
    _flush(path)


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Deletes all but the newest `keep`. The manifest goes first: half a deletion leaves no checkpoint that looks whole."""
    newest_first = sorted(_sealed(directory), key=lambda checkpoint: -checkpoint.step)
    for checkpoint in newest_first[keep:]:
        (checkpoint.path / SEAL).unlink()
        shutil.rmtree(checkpoint.path)


def _sealed(directory: Path) -> Iterator[Checkpoint]:
    for manifest in directory.glob(f"checkpoint-*/{SEAL}"):
        record = json.loads(manifest.read_text(encoding="utf-8"))
        yield Checkpoint(record["step"], manifest.parent, record["facts"], record["meter"], record["files"])


def _require_same(checkpoint: Checkpoint, facts: Facts) -> None:
    different = [
        f"{name} {checkpoint.facts.get(name)!r} then, {facts.get(name)!r} now"
        for name in {**checkpoint.facts, **facts}
        if checkpoint.facts.get(name) != facts.get(name)
    ]
    if different:
        raise StaleError(
            f"{checkpoint.path} was made by another training: {'; '.join(different)}. Expected: the same settings and "
            f"rows, so that it can be continued.{_way_back(checkpoint.facts, facts)} To throw it away and begin anew: "
            "codetune train --restart"
        )


def _way_back(then: Facts, now: Facts) -> str:
    """What a difference that is not a setting of the project comes from."""
    told = ""
    if then.get(STEP_SAMPLES) != now.get(STEP_SAMPLES):
        told += f" Without train.global_batch_size they follow the processes: set it to {then.get(STEP_SAMPLES)}."
    if str(then.get(SHARING)).startswith("zero") and then.get(SHARING) != now.get(SHARING):
        told += " DeepSpeed cuts its checkpoints for its strategy and so many processes: use as many again."
    return told


def _require_whole(checkpoint: Checkpoint) -> None:
    for name, size in checkpoint.files.items():
        file = checkpoint.path / name
        if not file.is_file() or file.stat().st_size != size:
            raise StaleError(
                f"{file} is missing or not as it was written. Expected: {size} bytes. Delete the checkpoint, and the "
                f"training continues from the one before it: rm -r {checkpoint.path}"
            )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
