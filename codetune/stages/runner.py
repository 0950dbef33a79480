"""The one runner of all stages.

`work` makes the parts of an artefact, `write` makes the artefact of them, and `run_stage` then seals it. What is done
already is decided here: the artefact's manifest names the same inputs and settings. Whether an artefact of an earlier
command is still true is `status.py`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from codetune import console
from codetune.errors import StaleError
from codetune.project.keys import sealing_keys, value_at
from codetune.project.sections import Project
from codetune.stages.precision import with_kept_precision, with_precision
from codetune.stages.stage import (
    Input,
    Recipe,
    RunContext,
    Settings,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.store.digests import Digests
from codetune.store.files import remove, write_text
from codetune.store.locks import locked, waiting
from codetune.store.manifest import Manifest, read_manifest, write_manifest
from codetune.store.run_directory import inspect_run, open_run
from codetune.store.takeover import take_over
from codetune.text import setting_text

TOTAL = "total"  # the file beside unfinished work
SAVED = "Progress saved. Run the same command to continue."
RULES = "rules"  # beside the settings of a manifest: the stage's own `rules`


def open_context(project: Project) -> RunContext:
    """The context of the project; makes the run directory where it is missing. Raises InputError where it belongs to
    somebody else."""
    run = open_run(project)
    return RunContext(with_precision(project, run), run, Digests(run))


def read_context(project: Project) -> RunContext:
    """The context of the project, without writing anything."""
    run = inspect_run(project)
    return RunContext(with_kept_precision(project, run), run, Digests(run))


def run_stage(context: RunContext, stage: Stage, request: StageRequest | None = None) -> StageResult:
    """Makes the artefact of a stage, unless it is there, unharmed, and made of the same inputs and settings.

    Raises InputError where an input is missing or wrong, StaleError where a finished artefact may not be replaced,
    BusyError where another command makes the same artefact, KeyboardInterrupt with a text that says what is saved."""
    request = request or StageRequest()
    stage.check(context, request)
    result = _run_stage(context, stage, request)
    if result.state == "done":
        stage.afterwards(context)
    return result


def _run_stage(context: RunContext, stage: Stage, request: StageRequest) -> StageResult:
    lock = lock_name(stage, request)
    with locked(context.run, lock, request.shard), _saying_what_is_saved(context, stage, request):
        began = time.monotonic()
        recipe = make_recipe(context, stage, request)
        with waiting(context.run, f"{lock}-parts"):
            done = _done(context, recipe, began)
            if done is None:
                _take_over(context, stage, recipe, request)
                done = _done(context, recipe, began)
            if done is not None:
                remove(context.run.parts(recipe.artefact))
                return done
            if (manifest := read_manifest(recipe.artefact)) is not None:
                require_replaceable(context, stage, request, manifest, _difference(context, recipe, manifest))
            stage.prepare(context, recipe, request)
        reused = stage.work(context, recipe, request)
        with waiting(context.run, f"{lock}-parts"):  # shards meet here: the first one that finds all rows writes
            if done := _done(context, recipe, began):
                return done
            output = stage.write(context, recipe, request)
            if not output.complete:
                return _result(recipe, "partial", output, reused, began)
            facts = {**output.facts, **stage.facts(context, request)}
            return _seal(context, recipe, replace(output, facts=facts), reused, began)


@contextlib.contextmanager
def _saying_what_is_saved(context: RunContext, stage: Stage, request: StageRequest) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        name = stage.name
        nothing = (
            f"Interrupted before {name} had saved anything. What was finished before is kept. Run the same command to "
            f"start {name} again."
        )
        raise KeyboardInterrupt(SAVED if stage.has_saved(context, request) else nothing) from None


def lock_name(stage: Stage, request: StageRequest) -> str:
    """The name of the lock of the artefact."""
    return "-".join(part.replace("/", "-") for part in (stage.name, request.benchmark, request.label) if part)


def make_recipe(context: RunContext, stage: Stage, request: StageRequest) -> Recipe:
    """Resolves the inputs in their order. Raises InputError for the first that is missing."""
    inputs = stage.inputs(context.project, request)
    resolved = {part.name: part.resolve(context, request) for part in inputs}
    settings = stage_settings(context, stage, request)
    names = input_names(context.project, inputs)
    overrides = context.project.overrides
    return Recipe(
        stage.name,
        stage.artefact(context.run, request),
        settings,
        {name: found.digest for name, found in resolved.items()},
        names,
        {key: value for key, value in overrides.items() if key in settings or key in names},
        {name: found.path for name, found in resolved.items() if found.path is not None},
    )


def stage_settings(context: RunContext, stage: Stage, request: StageRequest) -> Settings:
    """The settings that seal the stage's artefact, by dotted key, and the rules that it follows."""
    settings = {key: value_at(context.project, key) for key in sealing_keys(stage.seal or stage.name)}
    return {**stage.settings(context, request, settings), **({RULES: stage.rules} if stage.rules else {})}


def input_names(project: Project, inputs: Sequence[Input]) -> dict[str, str]:
    """The names that the project gives to inputs, by key."""
    return {part.setting: str(value_at(project, part.setting)) for part in inputs if part.setting}


def require_replaceable(context: RunContext, stage: Stage, request: StageRequest, manifest: Manifest, why: str) -> None:
    """Raises StaleError where the finished artefact of `manifest` is the work of hours and `--replace` was not given;
    `why` says what another one would be made for."""
    if stage.loss is None or request.replace:
        return
    raise StaleError(
        f"{stage.artefact(context.run, request)} is finished and would be replaced: {why}. What would be lost: "
        f"{stage.loss(context, manifest)}. Give this run another name (--set name=NEW): it takes over what both "
        "have in common. Or add --replace to this command"
    )


def _take_over(context: RunContext, stage: Stage, recipe: Recipe, request: StageRequest) -> None:
    """Seals what another run beside this one has made of the same recipe, where one has."""
    taken = take_over(context.run, context.digests, recipe.artefact, recipe.made) if stage.is_taken_over else None
    if taken is not None:
        facts = {**taken.facts, **stage.facts(context, request)}
        own = replace(taken, names=dict(recipe.names), overrides=dict(recipe.overrides), facts=facts)
        write_manifest(recipe.artefact, own)


def _done(context: RunContext, recipe: Recipe, began: float) -> StageResult | None:
    manifest = read_manifest(recipe.artefact)
    if manifest is None or not recipe.made(manifest) or context.digests.artefact(recipe.artefact) != manifest.digest:
        return None
    return _result(recipe, "done", StageOutput(manifest.rows, manifest.refused, manifest.facts), manifest.rows, began)


def _difference(context: RunContext, recipe: Recipe, manifest: Manifest) -> str:
    """A sentence that says why a sealed artefact is not what would be made now."""
    changed = (name for name, digest in recipe.inputs.items() if manifest.inputs.get(name) != digest)
    return (
        differing_setting(context.project, recipe.artefact, manifest, recipe.settings)
        or next((f"{recipe.paths.get(name, name)} is not what it was made from" for name in changed), "")
        or f"{recipe.artefact} was changed after codetune wrote it"
    )


def _seal(context: RunContext, recipe: Recipe, output: StageOutput, reused: int, began: float) -> StageResult:
    """Writes the manifest: from here on the artefact exists."""
    before = read_manifest(recipe.artefact)
    replaced = differing_setting(context.project, recipe.artefact, before, recipe.settings) if before else ""
    manifest = Manifest(
        recipe.stage,
        context.digests.artefact(recipe.artefact),
        output.rows,
        dict(output.refused),
        dict(recipe.inputs),
        dict(recipe.settings),
        dict(recipe.overrides),
        time.monotonic() - began,
        dict(output.facts),
        dict(recipe.names),
    )
    write_manifest(recipe.artefact, manifest)
    remove(context.run.before(recipe.stage).directory)
    remove(context.run.parts(recipe.artefact))
    facts = {**output.facts, "replaced": replaced} if replaced else output.facts
    return _result(recipe, "done", replace(output, facts=facts), reused, began)


def _result(
    recipe: Recipe, state: Literal["done", "partial"], output: StageOutput, reused: int, began: float
) -> StageResult:
    return StageResult(
        recipe.stage,
        state,
        output.rows,
        reused,
        output.refused,
        recipe.artefact,
        round(time.monotonic() - began, 3),
        recipe.overrides,
        output.facts,
    )


def differing_setting(
    project: Project, artefact: Path, manifest: Manifest, settings: Settings, *, allow_overrides: bool = False
) -> str:
    """The first setting that differs from the manifest's, as a sentence; "" where none does. With `allow_overrides` a
    setting that was given by flag when the artefact was made may differ from the project."""
    for key, value in settings.items():
        if manifest.settings.get(key) != value and not (allow_overrides and key in manifest.overrides):
            return other_value(project, artefact, manifest, key, (manifest.settings.get(key), value))
    return ""


def other_value(project: Project, artefact: Path, manifest: Manifest, key: str, values: tuple[object, object]) -> str:
    """`values` are the one that made the artefact and the one that is asked for now."""
    if key == RULES:
        return f"{artefact} was made on {manifest.day} by rules that codetune has changed since"
    made = f"by flag on {manifest.day} " if key in manifest.overrides else ""
    asked = "the flag" if key in project.overrides else "the project"
    then, now = map(setting_text, values)
    return f"{artefact} was made {made}with {key} {then}, {asked} now says {now}"


def write_total(directory: Path, total: int) -> None:
    """Keeps, beside unfinished work, how much it is in all."""
    if _read_total(directory) != total:
        write_text(directory / TOTAL, f"{total}\n")


def of_total(directory: Path) -> str:
    """ " of 1,200" behind what is done of unfinished work; "" where it did not get as far as to know."""
    total = _read_total(directory)
    return f" of {total:,}" if total else ""


def _read_total(directory: Path) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((directory / TOTAL).read_text(encoding="utf-8"))
    return 0


def warn_of_new_parts(stage: str) -> None:
    console.warn(
        f"{stage}: settings, inputs or version have changed since it was interrupted, so it starts from the beginning"
    )
