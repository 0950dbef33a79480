"""Which settings and inputs make each artefact, and from that how it stands: done, stale (and why), partial, missing.

A setting that came by flag is part of the manifest and makes nothing stale. Says what is true; does no work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from codetune.data.source import dataset_fingerprint, is_here
from codetune.errors import StaleError
from codetune.project.sections import Project, sealing_keys, value_at
from codetune.store.digests import Digests, combined
from codetune.store.manifest import Manifest, read_manifest
from codetune.store.run_directory import Run

RowStage = Literal["score", "embed", "select", "train"]
State = Literal["done", "stale", "partial", "missing"]

NEEDS: Mapping[str, tuple[RowStage, ...]] = {"select": ("score", "embed"), "train": ("select",)}
# Of each stage that reads a model: what the model is called among the inputs, and the setting that names it.
_MODEL: Mapping[str, tuple[str, str]] = {
    "score": ("model", "score.model"),
    "embed": ("model", "embed.model"),
    "train": ("base", "model.path"),
}


@dataclass(frozen=True, slots=True)
class StageStatus:
    state: State
    why: str = ""  # of a stale artefact: what has changed
    manifest: Manifest | None = None  # of one that is done or stale, unless the manifest itself is damaged


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every verb works with: the project, its run directory, and the digests known there."""

    project: Project
    run: Run
    digests: Digests

    def artefact(self, stage: RowStage) -> Path:
        run = self.run
        return {"score": run.scores, "embed": run.embeddings, "select": run.selection, "train": run.model}[stage]


def settings_of(project: Project, stage: str) -> dict[str, Any]:
    """The settings that make the artefact of a stage, by dotted key."""
    settings = {key: value_at(project, key) for key in sealing_keys(stage)}
    if stage == "score":
        settings["score.model"] = project.score.model or project.model.path
    if stage == "generate" and project.generate.temperature == 0:  # greedy: nothing is drawn
        del settings["generate.top_p"], settings["seed"]
    return settings


def dataset_digest(context: RunContext) -> str:
    dataset = context.project.dataset
    return dataset_fingerprint(dataset, context.project.locate(dataset.path), context.digests.file)


def dataset_is_here(context: RunContext) -> bool:
    dataset = context.project.dataset
    return is_here(dataset, context.project.locate(dataset.path))


def stage_status(context: RunContext, stage: RowStage) -> StageStatus:
    """How the artefact of a row stage stands against the project and everything it was made from. What has been taken
    away, data set or model, changes nothing: it is missed by who reads it."""
    artefact = context.artefact(stage)
    try:
        manifest = read_manifest(artefact)
    except StaleError as why:
        return StageStatus("stale", str(why))
    if manifest is None:
        begun = {
            "score": context.run.parts(artefact),
            "embed": context.run.parts(artefact),
            "train": context.run.train,
        }.get(stage)
        return StageStatus("partial" if begun and begun.exists() else "missing")
    changed = (
        _differing_content(context, artefact, manifest)
        or differing_settings(artefact, manifest, settings_of(context.project, stage))
        or _differing_input(context, artefact, manifest)
    )
    return StageStatus("stale", changed, manifest) if changed else StageStatus("done", "", manifest)


def require(context: RunContext, stage: RowStage) -> Manifest:
    """The manifest of an artefact that a later stage is about to use. Raises StaleError with the command that makes it."""
    found = stage_status(context, stage)
    if found.manifest is not None and found.state == "done":
        return found.manifest
    artefact = context.artefact(stage)
    if found.state == "stale":
        first = _first_stale(context, stage)
        is_damaged = stage_status(context, first).manifest is None and stage_status(context, first).state == "stale"
        raise StaleError(found.why if is_damaged else f"{found.why}. Run: codetune {first}")
    condition = "is not finished" if found.state == "partial" else "does not exist"
    raise StaleError(f"{artefact} {condition}; it is made by another command. Run: codetune {stage}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """From what an artefact is about to be made: it is there already when its manifest says the same."""

    stage: str
    artefact: Path
    settings: Mapping[str, Any]
    overrides: Mapping[str, Any]
    inputs: Mapping[str, str]
    said: Mapping[str, Any] = field(default_factory=dict)  # the overrides under the keys that the user wrote

    @classmethod
    def of(cls, context: RunContext, stage: str, artefact: Path, inputs: Mapping[str, str]) -> Recipe:
        project, settings = context.project, settings_of(context.project, stage)
        said = {key: value for key, value in project.overrides.items() if _setting(project, stage, key) in settings}
        overrides = {_setting(project, stage, key): value for key, value in said.items()}
        return cls(stage, artefact, settings, overrides, inputs, said)

    def made(self, manifest: Manifest | None) -> bool:
        return (
            manifest is not None
            and dict(manifest.settings) == dict(self.settings)
            and dict(manifest.inputs) == dict(self.inputs)
        )

    def identity(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """Settings and inputs in one flat mapping, to be compared with those of unfinished work."""
        return identity(self.settings, {name: digest for name, digest in self.inputs.items() if name not in without})

    def sealed(
        self, digest: str, rows: int, refused: Mapping[str, int], seconds: float, facts: Mapping[str, Any]
    ) -> Manifest:
        return Manifest(
            self.stage,
            digest,
            rows,
            dict(refused),
            dict(self.inputs),
            dict(self.settings),
            dict(self.overrides),
            seconds,
            facts,
        )


def identity(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    return {**settings, **{f"{name} (digest)": digest for name, digest in inputs.items()}}


def _setting(project: Project, stage: str, key: str) -> str:
    """The setting that a key is to a stage: where the base model scores, its path is the scoring model's."""
    return "score.model" if (stage, key, project.score.model) == ("score", "model.path", None) else key


def differing_settings(artefact: Path, manifest: Manifest, settings: Mapping[str, Any]) -> str:
    """The first setting that has changed since, as a sentence; "" where none has."""
    for key, value in settings.items():
        if manifest.settings.get(key) != value and key not in manifest.overrides:
            return f"{artefact} was made with {key} {manifest.settings.get(key)!r}, the project now says {value!r}"
    return ""


def content_digest(context: RunContext, artefact: Path) -> str:
    """Of the artefact as it lies there now; of embeddings the vectors and their ids together."""
    if artefact != context.run.embeddings:
        return context.digests.artefact(artefact)
    return combined(context.digests.file(path) for path in (artefact, context.run.embedding_ids) if path.exists())


def _differing_content(context: RunContext, artefact: Path, manifest: Manifest) -> str:
    return (
        ""
        if content_digest(context, artefact) == manifest.digest
        else f"{artefact} was changed after codetune wrote it"
    )


def _differing_input(context: RunContext, artefact: Path, manifest: Manifest) -> str:
    for name, digest in manifest.inputs.items():
        if name == "dataset" and dataset_is_here(context) and dataset_digest(context) != digest:
            return f"the data set {context.project.dataset.path} has changed since {artefact} was made"
        if name in ("score", "embed", "select"):
            upstream = stage_status(context, name)  # type: ignore[arg-type]
            if upstream.state == "stale":
                return upstream.why
            if upstream.manifest is None or upstream.manifest.digest != digest:
                return f"{context.artefact(name)} has changed since {artefact} was made"  # type: ignore[arg-type]
    return _differing_model(context, artefact, manifest)


def _differing_model(context: RunContext, artefact: Path, manifest: Manifest) -> str:
    """Only of a model that lies in a directory: a hub's snapshot stays as it is, and one taken away changes nothing."""
    name, setting = _MODEL.get(manifest.stage, ("", ""))
    if name not in manifest.inputs or manifest.settings[setting] == "hashing":
        return ""
    directory = Path(context.project.locate(manifest.settings[setting])).expanduser()
    if not directory.is_dir() or context.digests.tree(directory) == manifest.inputs[name]:
        return ""
    return f"the model {directory} has changed since {artefact} was made"


def _first_stale(context: RunContext, stage: RowStage) -> RowStage:
    """The earliest stage in the chain that has to be done again."""
    manifest = stage_status(context, stage).manifest
    for upstream in NEEDS.get(stage, ()):
        if manifest is not None and upstream in manifest.inputs and stage_status(context, upstream).state != "done":
            return _first_stale(context, upstream)
    return stage
