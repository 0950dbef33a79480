"""Run directories of a small world, as the commands leave them and as a kill would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def selected_run(world: Path, name: str) -> Path:
    """A run with the selection, and no training."""
    run = world / "runs" / name
    run.mkdir(parents=True)
    for file in (world / "runs/small" / "project.json", *(world / "runs/small").glob("examples.jsonl*")):
        shutil.copy(file, run)
    for file in (world / "runs/small").glob("selection.*"):
        shutil.copy(file, run)
    return run


def stopped_at(step: int, run: Path, name: str) -> Path:
    """A run beside it, as if the training had been killed after the checkpoint of that step."""
    broken = selected_run(run.parents[1], name)
    (broken / "train").mkdir()
    shutil.copytree(run / f"train/checkpoint-{step}", broken / f"train/checkpoint-{step}")
    for file in ("metrics.jsonl", "recipe.json"):
        shutil.copy(run / "train" / file, broken / "train")
    return broken


def setting_flags(name: str, *settings: str) -> list[str]:
    flags = (f"output_dir=runs/{name}", "select.strategy=random", *settings)
    return [word for setting in flags for word in ("--set", setting)]


def metrics(run: Path) -> list[dict[str, Any]]:
    text = (run / "train/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
