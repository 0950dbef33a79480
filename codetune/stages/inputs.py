"""The inputs of the stages beside the data set (`dataset.py`): models, and the artefacts of earlier stages. All of them
are known by content: another spelling of a path, a copy or a newer time changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from codetune.data.hub import is_cached, is_hub_id
from codetune.model.model_files import find_model
from codetune.project.keys import required, value_at
from codetune.project.sections import Project
from codetune.stages.dataset import dataset_paths
from codetune.stages.runner import other_value
from codetune.stages.stage import Input, Resolved, RunContext, SealedArtefact, Stage, StageRequest
from codetune.stages.status import require


def model_input(name: str, setting: str, find: Callable[[str], Path] = find_model) -> Input:
    """A model directory, found by what the project says under the key `setting`."""

    def resolve(context: RunContext, request: StageRequest) -> Resolved:
        directory = find(context.project.locate(_name_of(context.project, setting)))
        return Resolved(context.digests.tree(directory), directory)

    def change(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
        return _changed_model(context, setting, sealed.manifest.inputs[name], sealed)

    return Input(name, resolve, change, setting)


def artefact_input(stage: Stage) -> Input:
    """The artefact of an earlier stage, for the same benchmark and model where it is one of these."""

    def resolve(context: RunContext, request: StageRequest) -> Resolved:
        return Resolved(require(context, stage, request).digest, stage.artefact(context.run, request))

    def change(*_: object) -> str:
        raise AssertionError("status.py follows the stage itself")

    return Input(stage.name, resolve, change, upstream=stage)


def require_named_inputs(project: Project, inputs: Sequence[Input]) -> None:
    """Raises InputError where the project does not name a data set or model that is among the inputs."""
    for part in inputs:
        if part.setting:
            _name_of(project, part.setting)


def _name_of(project: Project, setting: str) -> str:
    name = value_at(project, setting)
    if isinstance(name, list):
        return dataset_paths(project)
    assert name is None or isinstance(name, str)
    return required(name, setting)


def _changed_model(context: RunContext, setting: str, digest: str, sealed: SealedArtefact) -> str:
    """A sentence that says how the model under `setting` differs from the one that made the artefact. "" if it does not
    differ, or if it is the same name and no directory of this machine: a snapshot of the Hub never changes."""
    made, asked = sealed.manifest.names.get(setting), value_at(context.project, setting)
    said = made if sealed.allow_overrides and setting in sealed.manifest.overrides and made else asked
    if not isinstance(said, str):
        return ""  # no model is named: the stage that needs one says so
    directory = Path(context.project.locate(said)).expanduser()
    if directory.is_dir() and context.digests.tree(directory) == digest:
        return ""
    if said != made:
        return other_value(context.project, sealed.path, sealed.manifest, setting, (made, said))
    return f"the model {directory} has changed since {sealed.path} was made" if directory.is_dir() else ""


def model_here(project: Project, setting: str) -> Path | None:
    """The directory of the model under `setting`, where it is on this machine; asks no Hub."""
    name = value_at(project, setting)
    if not isinstance(name, str):
        return None
    directory = Path(project.locate(name)).expanduser()
    if directory.is_dir():
        return directory
    return find_model(name) if is_hub_id(name) and is_cached(name, "model") else None


def is_on_hub(project: Project, name: str) -> bool:
    """Whether the name of a model or data set is a Hub id, and no path of this machine."""
    return is_hub_id(name) and project.locate(name) == name


def published_name(project: Project, name: str) -> str:
    """A name as others may see it: of a path only its last part."""
    return name if is_on_hub(project, name) else Path(name).name
