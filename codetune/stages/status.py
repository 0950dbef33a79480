"""Whether an artefact is still true: done, stale (and why), partial, missing. Looks at files only, asks no Hub.

What is asked for is the project file and the flags of this command, nothing else: `stage_status` holds an artefact
against just that. A stage that is called alone takes the artefacts of earlier stages as they are (`require`): settings
that were given to these by flag are no reason to refuse them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from codetune import console
from codetune.errors import StaleError
from codetune.project.keys import value_at
from codetune.stages.runner import differing_setting, stage_settings
from codetune.stages.stage import Input, RunContext, SealedArtefact, Stage, StageRequest
from codetune.store.manifest import Manifest, read_manifest
from codetune.text import setting_text

State = Literal["done", "stale", "partial", "missing"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The state of an artefact; `why` says what has changed since a stale one was made, or how far a partial one is."""

    state: State
    why: str = ""
    manifest: Manifest | None = None  # of one that is done or stale, unless the manifest itself is damaged
    first: Stage | None = None  # of a stale one: the earliest stage to run again; None: a damaged manifest
    damaged: Path | None = None  # the artefact whose manifest is damaged: this one, or one that it was made of


def stage_status(
    context: RunContext, stage: Stage, request: StageRequest | None = None, *, allow_overrides: bool = False
) -> StageStatus:
    """A missing model or data set does not make an artefact stale; the stage that reads it raises InputError."""
    request = request or StageRequest()
    artefact = stage.artefact(context.run, request)
    try:
        manifest = read_manifest(artefact)
    except StaleError as why:
        return StageStatus("stale", str(why), damaged=artefact)
    if manifest is None:
        progress = stage.progress(context, request)
        return StageStatus("missing") if progress is None else StageStatus("partial", progress)
    read = stage.inputs(context.project, request)
    inputs = [part for part in read if part.name in manifest.inputs]
    upstream = {
        part.name: stage_status(context, part.upstream, request, allow_overrides=allow_overrides)
        for part in inputs
        if part.upstream is not None
    }
    sealed = SealedArtefact(artefact, manifest, allow_overrides)
    changed = _change(context, stage, request, sealed)
    if not changed and (gone := manifest.inputs.keys() - {part.name for part in read}):
        changed = f"{artefact} was made of {', '.join(sorted(gone))} as well, which the project no longer names"
    for part in inputs:
        if not changed and part.upstream is not None:
            changed = _changed_upstream(context, part, upstream[part.name], request, sealed)
        elif not changed:
            changed = part.change(context, request, sealed)
    if not changed:
        return StageStatus("done", "", manifest)
    damaged = next((found.damaged for found in upstream.values() if found.damaged), None)
    earlier = [(part.upstream, upstream[part.name]) for part in inputs if part.upstream is not None]
    first = next(
        (found.first if found.state == "stale" else before for before, found in earlier if found.state != "done"), stage
    )
    return StageStatus("stale", changed, manifest, first, damaged)


def require(context: RunContext, stage: Stage, request: StageRequest | None = None) -> Manifest:
    """The manifest of an artefact that a later stage is about to use; says which settings it was made with by flag, and
    not by this project. Raises StaleError, which names the command that makes it."""
    request = request or StageRequest()
    found = stage_status(context, stage, request, allow_overrides=True)
    if found.state == "done" and found.manifest is not None:
        _name_overrides(context, stage.artefact(context.run, request), found.manifest)
        return found.manifest
    if found.state == "stale":
        # A damaged manifest says it itself.
        advice = f". Run: {found.first.command(replace(request, replace=True))}" if found.first else ""
        raise StaleError(f"{found.why}{advice}")
    artefact = stage.artefact(context.run, request)
    condition = "is not finished" if found.state == "partial" else "does not exist"
    name = artefact.parent.parent.name if stage.of_benchmark else artefact.stem  # completions, selection, scores
    raise StaleError(f"No {name} yet ({artefact} {condition}). Run: {stage.command(request)}")


def _name_overrides(context: RunContext, artefact: Path, manifest: Manifest) -> None:
    differing = {key: value for key, value in manifest.overrides.items() if value_at(context.project, key) != value}
    other = [f"{key}={setting_text(value, str)}" for key, value in differing.items()]
    if other:
        console.say(f"{artefact} is used as it was made by flag on {manifest.day}: {', '.join(other)}")


def _change(context: RunContext, stage: Stage, request: StageRequest, sealed: SealedArtefact) -> str:
    """A sentence that says how the artefact or its settings differ from the manifest; "" if they do not."""
    artefact, manifest = sealed.path, sealed.manifest
    if context.digests.artefact(artefact) != manifest.digest:
        return f"{artefact} was changed after codetune wrote it"
    settings = stage_settings(context, stage, request)
    if sealed.allow_overrides:
        settings = {key: value for key, value in settings.items() if key not in stage.additions}
    return differing_setting(context.project, artefact, manifest, settings, allow_overrides=sealed.allow_overrides)


def _changed_upstream(
    context: RunContext, part: Input, found: StageStatus, request: StageRequest, sealed: SealedArtefact
) -> str:
    """An artefact that is stale makes what was made of it stale; so does another one in its place."""
    assert part.upstream is not None
    if found.state == "stale":
        return found.why
    artefact = part.upstream.artefact(context.run, request)
    if found.manifest is None and not artefact.exists():
        return f"{artefact}, of which {sealed.path} was made, does not exist"
    if found.manifest is None or found.manifest.digest != sealed.manifest.inputs[part.name]:
        return f"{artefact} has changed since {sealed.path} was made"
    return ""
