"""A training that is not finished yet: where it lies, whether it may be continued, how it takes a finished one's place.

The first training of a run lies in `train/` from the beginning. While a finished one stands there, beside the model
that it made, the next lies in `train.next/` and takes its place together with the new model: the old ones stay whole
until then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codetune import console
from codetune.errors import StaleError
from codetune.project.sections import free_on_resume
from codetune.stages.status import Recipe, identity
from codetune.store.files import remove, write_text
from codetune.store.manifest import read_manifest
from codetune.store.run_directory import Run

RECIPE = "recipe.json"  # in train/: what its checkpoints are made of
TRAINED = "codetune.json"  # in a model directory: codetune trained it, so it is prompted in its chat format


def claim_training(run: Run, recipe: Recipe, restart: bool) -> Path:
    """The directory that this training goes on in, or begins in. One with checkpoints that was made otherwise is an
    error, for they are hours of work; `restart` removes it."""
    directory = training_place(run)
    wanted, found = json.loads(json.dumps(recipe.identity())), _recipe(directory)
    different = [key for key in _bound({**found, **wanted}) if found.get(key) != wanted.get(key)] if found else []
    begun = any(directory.glob("checkpoint-*"))
    if different and begun and not restart:
        raise StaleError(_other_settings(directory, different, found, wanted))
    if restart and directory.exists():
        console.warn(f"{directory} held an unfinished training; it is removed, and the training starts anew")
    if restart or (different and not begun):
        remove(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECIPE, json.dumps(wanted, indent=2) + "\n")
    return directory


def publish_training(run: Run, directory: Path) -> None:
    """The training has made its model: it takes the place of the one before. (Killed before this or before the manifest,
    the command continues from the last checkpoint, wherever it lies.)"""
    if directory != run.train:
        remove(run.train)
        directory.rename(run.train)


def training_place(run: Run) -> Path:
    """Where a training that is not finished lies, or would."""
    manifest, found = read_manifest(run.model), _recipe(run.train)
    finished = manifest is not None and found == json.loads(json.dumps(identity(manifest.settings, manifest.inputs)))
    return run.next_train if finished or run.next_train.exists() else run.train


def begun_otherwise(run: Run, settings: Mapping[str, Any]) -> tuple[str, str]:
    """How the settings of an unfinished training differ from those of the project, and the command that goes on with
    them; two empty texts where they do not, or where there is no checkpoint to go on from."""
    directory, wanted = training_place(run), json.loads(json.dumps(dict(settings)))
    found = _recipe(directory)
    different = [key for key in _bound(wanted) if key in found and found[key] != wanted[key]]
    if not different or not any(directory.glob("checkpoint-*")):
        return "", ""
    return _differences(different, found, wanted), f"codetune train {_said(different, found)}"


def _bound(recipe: Mapping[str, Any]) -> list[str]:
    """What must stay as it is; of batch sizes the checkpoint itself sees to their product."""
    return [key for key in recipe if key not in free_on_resume()]


def _recipe(directory: Path) -> dict[str, Any]:
    try:
        recipe: dict[str, Any] = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return recipe


def _other_settings(
    directory: Path, different: Sequence[str], found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
    settings = [key for key in different if key in found and not key.endswith("(digest)")]
    can_go_on = len(settings) == len(different)
    back = f"To continue it: codetune train {_said(settings, found)}" if can_go_on else "It cannot be continued"
    return (
        f"{directory} holds an unfinished training that was made otherwise: {_differences(different, found, wanted)}. "
        f"{back}. To throw it away and begin anew, add --restart to your command: codetune train --restart"
    )


def _differences(different: Sequence[str], found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} {json.dumps(found.get(key))} then, {json.dumps(wanted.get(key))} now" for key in different)


def _said(keys: Sequence[str], found: Mapping[str, Any]) -> str:
    return " ".join(f"--set '{key}={json.dumps(found[key])}'" for key in keys)
