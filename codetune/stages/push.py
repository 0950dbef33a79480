"""`train --push`: the finished model of a run -> a repository on the Hugging Face Hub, with no path of this machine in
it. The model itself stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codetune import console
from codetune.data.hub_upload import require_upload, upload_model
from codetune.errors import UsageError
from codetune.model.file_check import ADAPTER_CONFIG
from codetune.project.keys import required, value_at
from codetune.project.sections import Project
from codetune.stages.inputs import is_on_hub, published_name
from codetune.stages.resume import TRAINED
from codetune.stages.stage import RunContext
from codetune.text import gigabytes

# Files that name inputs by paths of this machine: their keys, and those of the project for the same.
NAMES_OF_INPUTS = {
    ADAPTER_CONFIG: {"base_model_name_or_path": "model.path"},
    TRAINED: {"model.path": "model.path", "train.tasks": "train.tasks"},
}


def require_pushable(context: RunContext, repository: str) -> None:
    """Raises, before a training, what can be known of the upload after it: UsageError for adapters that nobody else
    could load, InputError for a wrong name or token, CodetuneError where the Hub does not answer."""
    train, base = context.project.train, required(context.project.model.path, "model.path")
    if train.method != "full" and not train.merge and not is_on_hub(context.project, base):
        raise UsageError(
            f"--push {repository}: train.method {train.method} makes adapters, which are loaded over the base model by "
            f"its name, and model.path is {base}, a directory of this machine. Expected: a base model that others can "
            "load. Set model.path to its Hub id (with the same files nothing is trained again), or train.merge: true"
        )
    require_upload(repository)


def push_model(context: RunContext, repository: str) -> str:
    """Uploads `model/` with its card; returns the address of the repository. Raises as `upload_model`; an interruption
    says that the model is finished."""
    directory = context.run.model
    files = [path for path in directory.rglob("*") if path.is_file()]
    size = gigabytes(sum(path.stat().st_size for path in files))
    console.say(f"train: uploading {directory} ({size}) to {repository}")
    replaced = {
        path.relative_to(directory).as_posix(): _without_paths(path, context.project)
        for path in files
        if path.name in NAMES_OF_INPUTS
    }
    try:
        return upload_model(directory, repository, replaced)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Interrupted. The model is finished in {directory}. Run the same command again: it is not trained again."
        ) from None


def _without_paths(file: Path, project: Project) -> bytes:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key, setting in NAMES_OF_INPUTS[file.name].items():
        if key in document:
            document[key] = published_name(project, str(value_at(project, setting)))
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
