"""An unfinished training: where it lies, whether it can be continued, and how it takes a finished one's place.

The first training of a run lies in `train/`. While a finished one stands there, beside the model that it made, the next
lies in `train.next/` and takes its place together with the new model: the old ones stay whole until then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from codetune import __version__, console
from codetune.errors import StaleError
from codetune.project.sections import free_on_resume
from codetune.stages.stage import Recipe, Settings, identity
from codetune.store.files import remove, write_text
from codetune.store.manifest import read_manifest
from codetune.store.run_directory import Run

VERSION = "codetune"  # key of a record: the version that wrote it
RECIPE = "recipe.json"  # in train/: what its checkpoints are made of
TRAINED = "codetune.json"  # in a model directory: codetune trained it, so it is prompted in its chat format


def record_of(recipe: Recipe) -> dict[str, object]:
    """The record kept beside checkpoints and in a trained model: settings, digests of inputs, and their names."""
    record: dict[str, object] = json.loads(json.dumps({VERSION: __version__, **recipe.identity(), **recipe.names}))
    return record


def claim_training(run: Run, recipe: Recipe, restart: bool) -> Path:
    """The directory in which this training starts or continues.

    Raises StaleError for checkpoints of another recipe: they are hours of work. `restart` removes them."""
    directory = unfinished_directory(run)
    wanted, found = record_of(recipe), _read_record(directory)
    begun = any(directory.glob("checkpoint-*"))
    if found and begun and VERSION not in found and not restart:
        raise StaleError(
            f"{directory} holds an unfinished training of codetune 0.1.0; version {__version__} does not continue it. "
            "Continue it with codetune 0.1.0. To discard it and start again: codetune train --restart"
        )
    bound = _bound_keys({**found, **wanted}, recipe.names)
    different = [key for key in bound if found.get(key) != wanted.get(key)] if found else []
    if different and begun and not restart:
        raise StaleError(_other_recipe(directory, different, found, wanted))
    if restart and directory.exists():
        console.warn(f"{directory} held an unfinished training; it is removed, and the training starts again")
    if restart or (different and not begun):
        remove(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECIPE, json.dumps(wanted, indent=2) + "\n")
    return directory


def publish_training(run: Run, directory: Path) -> None:
    """Puts the training in the place of the one before. (Killed before this or before the manifest is written, the
    command continues from the last checkpoint, wherever it lies.)"""
    if directory != run.train:
        remove(run.train)
        directory.rename(run.train)


def unfinished_directory(run: Run) -> Path:
    """The directory of an unfinished training, whether there is one or not."""
    manifest, found = read_manifest(run.model), _read_record(run.train)
    finished = False
    if manifest is not None:
        made = json.loads(json.dumps({**identity(manifest.settings, manifest.inputs), **manifest.names}))
        finished = {key: value for key, value in found.items() if key != VERSION} == made
    return run.next_train if finished or run.next_train.exists() else run.train


def other_settings_of(run: Run, settings: Settings) -> tuple[str, str]:
    """A sentence that says how the settings of an unfinished training differ from the project's, and the command that
    continues it with its own; two empty texts if they do not differ, or if there is no checkpoint."""
    directory, wanted = unfinished_directory(run), json.loads(json.dumps(dict(settings)))
    found = _read_record(directory)
    different = [key for key in _bound_keys(wanted, {}) if key in found and found[key] != wanted[key]]
    if not different or not any(directory.glob("checkpoint-*")):
        return "", ""
    return _differences(different, found, wanted), f"codetune train {_assignments(different, found)}"


def _bound_keys(record: Mapping[str, object], names: Mapping[str, str]) -> list[str]:
    """The keys that must stay the same; the checkpoint itself checks the product of the batch sizes."""
    free = {VERSION, *free_on_resume(), *names}
    return [key for key in record if key not in free]


def _read_record(directory: Path) -> dict[str, object]:
    try:
        record: dict[str, object] = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record


def _other_recipe(
    directory: Path, different: Sequence[str], found: Mapping[str, object], wanted: Mapping[str, object]
) -> str:
    settings = [key for key in different if key in found and not key.endswith("(digest)")]
    can_continue = len(settings) == len(different)
    back = "It cannot be continued"
    if can_continue:
        back = f"To continue it: codetune train {_assignments(settings, found)}"
    return (
        f"{directory} holds an unfinished training with other settings: {_differences(different, found, wanted)}. "
        f"{back}. To discard it and start again, add --restart to your command: codetune train --restart"
    )


def _differences(different: Sequence[str], found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    return "; ".join(f"{key} {json.dumps(found.get(key))} then, {json.dumps(wanted.get(key))} now" for key in different)


def _assignments(keys: Sequence[str], found: Mapping[str, object]) -> str:
    return " ".join(f"--set '{key}={json.dumps(found[key])}'" for key in keys)
