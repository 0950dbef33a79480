"""Checkpoints: `train/checkpoint-STEP/`, written by the Trainer of transformers and sealed here when complete.

The manifest `codetune.json` is written last. It lists every file with its size and the fingerprint that a resumed
training must share (the Trainer would notice neither a missing optimizer state nor other data), and the sums of the
metrics. A directory without a manifest is an incomplete checkpoint, and is removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from codetune.errors import CodetuneError, StaleError, first_line
from codetune.store.files import flush_to_disk, grant_usual_access, write_text
from codetune.text import setting_text

MANIFEST = "codetune.json"
# torch reports a full disk as a RuntimeError of its archive writer (caffe2/serialize/inline_container.cc).
TORCH_WRITER = ("PytorchStreamWriter", "inline_container")
STEP_SAMPLES, STRATEGY = "samples of a step", "launch.strategy"  # keys that depend on how the training is launched
RUST_ERROR = "(os error "  # tokenizers reports one as a bare Exception with the text of Rust's std::io::Error
Fingerprint = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    path: Path
    fingerprint: Fingerprint
    metrics: Mapping[str, Any]  # `MetricAccumulator.state`
    files: Mapping[str, int]  # bytes by path below `path`


def last_checkpoint(directory: Path, fingerprint: Fingerprint) -> Checkpoint | None:
    """The newest sealed checkpoint. Raises StaleError where it belongs to another training, or lacks a file."""
    checkpoints = sealed_checkpoints(directory)
    if not checkpoints:
        return None
    _require_same(checkpoints[-1], json.loads(json.dumps(fingerprint)))
    _require_complete(checkpoints[-1])
    return checkpoints[-1]


def remove_other_checkpoints(directory: Path, fingerprint: Fingerprint) -> None:
    """Removes the checkpoints of another training than the one with this fingerprint."""
    for checkpoint in sealed_checkpoints(directory):
        if checkpoint.fingerprint != json.loads(json.dumps(fingerprint)):
            _delete(checkpoint)


def sealed_checkpoints(directory: Path) -> list[Checkpoint]:
    """All sealed checkpoints in the order of their steps; removes nothing."""
    checkpoints = []
    for manifest in directory.glob(f"checkpoint-*/{MANIFEST}"):
        record = json.loads(manifest.read_text(encoding="utf-8"))
        checkpoints.append(
            Checkpoint(record["step"], manifest.parent, record["facts"], record["meter"], record["files"])
        )
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def remove_incomplete_checkpoints(directory: Path) -> None:
    """Removes checkpoints without a manifest, which a crash left."""
    for leftover in directory.glob("checkpoint-*"):
        if not (leftover / MANIFEST).exists():
            shutil.rmtree(leftover)


def continuation(directory: Path) -> str:
    """Where a training that failed goes on: `continues from the checkpoint of step 40`."""
    checkpoints = sealed_checkpoints(directory)
    if not checkpoints:
        return "starts again: it has no checkpoint"
    return f"continues from the checkpoint of step {checkpoints[-1].step:,}"


@contextmanager
def explain_full_disk(path: Path, directory: Path, needed: str) -> Iterator[None]:
    """Turns an error of writing `path` into a CodetuneError that says where the training in `directory` goes on."""
    try:
        yield
    except Exception as why:  # tokenizers has no class of its own for it
        if not _is_of_writing(why):
            raise  # for example a lost connection to a rank that died
        raise CodetuneError(
            f"{path} cannot be written ({first_line(why)}). Expected: room for {needed}. Make room, then run again: "
            f"codetune train (it {continuation(directory)})"
        ) from why


def _is_of_writing(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return any(name in str(error) for name in TORCH_WRITER)
    return isinstance(error, OSError | SafetensorError) or (type(error) is Exception and RUST_ERROR in str(error))


def seal_checkpoint(path: Path, step: int, fingerprint: Fingerprint, metrics: Mapping[str, object]) -> None:
    """Writes the manifest. The checkpoint then survives a loss of power."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        grant_usual_access(file)
        flush_to_disk(file)
    sizes = {str(file.relative_to(path)): file.stat().st_size for file in files}
    record = {"step": step, "facts": fingerprint, "meter": metrics, "files": sizes}
    write_text(path / MANIFEST, json.dumps(record, indent=1))


def prune_checkpoints(directory: Path, keep: int, best_step: int | None = None) -> None:
    """Deletes all but the newest `keep` and the one of `best_step`."""
    for checkpoint in sealed_checkpoints(directory)[::-1][keep:]:
        if checkpoint.step != best_step:
            _delete(checkpoint)


def checkpoint_of(directory: Path, step: int, best: str) -> Path:
    """The checkpoint of the best step; `best` says by what. Raises StaleError where it was removed."""
    for checkpoint in sealed_checkpoints(directory):
        if checkpoint.step == step:
            return checkpoint.path
    raise StaleError(
        f"{directory / f'checkpoint-{step}'} is missing, which has the weights of {best}. "
        "Expected: the checkpoints as codetune left them. Restore it, or train anew: set train.keep_best: null and add "
        "--replace to this command"
    )


def _delete(checkpoint: Checkpoint) -> None:
    (checkpoint.path / MANIFEST).unlink()  # first: a half-deleted checkpoint is incomplete
    shutil.rmtree(checkpoint.path)


def _require_same(checkpoint: Checkpoint, now: Fingerprint) -> None:
    then = checkpoint.fingerprint
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if different := [
        f"{name} {setting_text(then.get(name))} then, {setting_text(now.get(name))} now" for name in names
    ]:
        raise StaleError(
            f"{checkpoint.path} was made by another training: {'; '.join(different)}. Expected: the same settings and "
            f"rows, so that it can be continued.{_launch_advice(then, now)} To discard it, add --replace to this "
            "command"
        )


def _launch_advice(then: Fingerprint, now: Fingerprint) -> str:
    """Advice on a difference that comes from the launch and not from a setting of the project."""
    advice = ""
    if then.get(STEP_SAMPLES) != now.get(STEP_SAMPLES):
        advice += (
            " Without train.global_batch_size the samples of a step depend on the number of processes: set it to "
            f"{then.get(STEP_SAMPLES)}."
        )
    if str(then.get(STRATEGY)).startswith("zero") and then.get(STRATEGY) != now.get(STRATEGY):
        advice += " A DeepSpeed checkpoint fits one strategy and one number of processes: use the same again."
    return advice


def _require_complete(checkpoint: Checkpoint) -> None:
    for name, size in checkpoint.files.items():
        file = checkpoint.path / name
        if not file.is_file() or file.stat().st_size != size:
            raise StaleError(
                f"{file} is missing or has another size than when it was written. Expected: {size} bytes. Move the "
                f"checkpoint away, and the training continues from the one before it: mv {checkpoint.path} "
                f"{checkpoint.path.with_name(f'damaged-{checkpoint.path.name}')}"
            )
