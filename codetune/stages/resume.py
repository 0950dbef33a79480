"""An unfinished training: where it lies, whether it can be continued, and how it takes a finished one's place.

The first training of a run lies in `train/`. While a finished one stands there, beside the model that it made, the next
lies in `train.next/` and takes its place together with the new model: the old ones stay whole until then."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from codetune import __version__, console
from codetune.errors import StaleError
from codetune.project.keys import free_on_resume
from codetune.stages.stage import Recipe, Settings, identity
from codetune.store.files import remove, write_text
from codetune.store.manifest import read_manifest
from codetune.store.run_directory import Run
from codetune.text import day
from codetune.training.checkpoint import MANIFEST

VERSION = "codetune"  # key of a record: the version that wrote it
RECIPE = "recipe.json"  # in train/: what its checkpoints are made of
TRAINED = "codetune.json"  # in a model directory: codetune trained it, so it is prompted in its chat format


def record_of(recipe: Recipe) -> dict[str, object]:
    """The record kept beside checkpoints and in a trained model: settings, digests of inputs, and their names."""
    record: dict[str, object] = json.loads(json.dumps({VERSION: __version__, **recipe.identity(), **recipe.names}))
    return record


def claim_training(run: Run, recipe: Recipe, replace: bool) -> Path:
    """The directory in which this training starts or continues.

    Raises StaleError for a model or checkpoints of another recipe: they are hours of work. `replace` removes the
    checkpoints now; the model goes when the new one is whole."""
    _require_no_other_model(run.model, recipe, replace)
    directory = unfinished_directory(run)
    wanted, found = record_of(recipe), _read_record(directory / RECIPE)
    begun = bool(whole_checkpoints(directory))
    if found and begun and VERSION not in found and not replace:
        raise StaleError(
            f"{directory} holds an unfinished training of codetune 0.1.0; version {__version__} does not continue it. "
            "Continue it with codetune 0.1.0. To discard it, add --replace to this command"
        )
    different = _different_keys(found, wanted, recipe.names) if found else []
    if different and begun and not replace:
        raise StaleError(_other_recipe(directory, different, found, wanted))
    if different or (found and VERSION not in found):
        if begun:
            console.warn(f"{directory} held an unfinished training ({_progress_of(directory, found)}); it is removed")
        remove(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / RECIPE, json.dumps(wanted, indent=2) + "\n")
    return directory


def _require_no_other_model(model: Path, recipe: Recipe, replace: bool) -> None:
    """Raises StaleError for a model without a manifest that this training did not make. (One that it made was waiting
    for its manifest when the command was killed.)"""
    if replace or not model.exists() or read_manifest(model) is not None:
        return
    found = _read_record(model / TRAINED)
    if not found or _different_keys(found, record_of(recipe), recipe.names):
        raise StaleError(
            f"{model} holds a model that another training made, and it would be replaced. Move it away to keep it, or "
            "add --replace to this command"
        )


def publish_training(run: Run, directory: Path) -> None:
    """Puts the training in the place of the one before. (Killed before this or before the manifest is written, the
    command continues from the last checkpoint, wherever it lies.)"""
    if directory != run.train:
        remove(run.train)
        directory.rename(run.train)


def unfinished_directory(run: Run) -> Path:
    """The directory of an unfinished training, whether there is one or not."""
    manifest, found = read_manifest(run.model), _read_record(run.train / RECIPE)
    finished = False
    if manifest is not None:
        made = json.loads(json.dumps({**identity(manifest.settings, manifest.inputs), **manifest.names}))
        finished = {key: value for key, value in found.items() if key != VERSION} == made
    return run.next_train if finished or run.next_train.exists() else run.train


def other_settings_of(run: Run, settings: Settings) -> tuple[str, str]:
    """A sentence that says how the settings of an unfinished training differ from the project's, and the command that
    continues it with its own; two empty texts if they do not differ, or if there is no checkpoint."""
    directory, wanted = unfinished_directory(run), json.loads(json.dumps(dict(settings)))
    found = _read_record(directory / RECIPE)
    different = [key for key in _bound_keys(wanted, {}) if key in found and found[key] != wanted[key]]
    if not different or not whole_checkpoints(directory):
        return "", ""
    return _differences(different, found, wanted), f"codetune train {_assignments(different, found)}"


def _bound_keys(record: Mapping[str, object], names: Mapping[str, str]) -> list[str]:
    """The keys of a training that must stay the same while it continues; the checkpoint itself checks the product of
    the batch sizes."""
    free = {VERSION, *free_on_resume(), *names}
    return [key for key in record if key not in free]


def _different_keys(found: Mapping[str, object], wanted: Mapping[str, object], names: Mapping[str, str]) -> list[str]:
    return [key for key in _bound_keys({**found, **wanted}, names) if found.get(key) != wanted.get(key)]


def _read_record(file: Path) -> dict[str, object]:
    """The record in a file; empty where there is no such file. Raises StaleError where it is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # no JSON, or no text
        record = None
    if not isinstance(record, dict):
        raise StaleError(
            f"{file} is damaged. Expected: the settings that made what lies beside it; without them it cannot be used. "
            f"Move it away: mv {file.parent} {file.parent}.old"
        )
    return record


def _other_recipe(
    directory: Path, different: Sequence[str], found: Mapping[str, object], wanted: Mapping[str, object]
) -> str:
    settings = [key for key in different if key in found and not key.endswith("(digest)")]
    can_continue = len(settings) == len(different)
    back = "It cannot be continued, unless the content behind each (digest) is made as it was"
    if can_continue:
        back = f"To continue it: codetune train {_assignments(settings, found)}"
    return (
        f"{directory} holds an unfinished training ({_progress_of(directory, found)}) with other settings: "
        f"{_differences(different, found, wanted)}. {back}. To discard it, add --replace to this command"
    )


def _progress_of(directory: Path, found: Mapping[str, object]) -> str:
    """How far an unfinished training is, by its last checkpoint: what would be lost with it."""
    last = max(whole_checkpoints(directory), key=step_of)
    written = day(time.localtime(last.stat().st_mtime))
    return f"method {found.get('train.method')}, checkpoint of step {step_of(last)}, written on {written}"


def whole_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that a training can continue from, in no order; a command that was killed can leave a part of
    one."""
    return [manifest.parent for manifest in directory.glob(f"checkpoint-*/{MANIFEST}")]


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint by the name of its directory."""
    return int(checkpoint.name.rpartition("-")[2])


def _differences(different: Sequence[str], found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    return "; ".join(f"{key} {json.dumps(found.get(key))} then, {json.dumps(wanted.get(key))} now" for key in different)


def _assignments(keys: Sequence[str], found: Mapping[str, object]) -> str:
    return " ".join(f"--set '{key}={json.dumps(found[key])}'" for key in keys)
