"""The type of a stage, and the one runner of all seven.

A stage turns inputs, known by the digest of their content, and the settings that seal it into one artefact. It does so
in two steps: `work` makes durable parts (block logs, completions, verdicts), resumable and in as many processes as
there are; `write` makes the artefact of them, which `run_stage` then seals. A stage without parts has `write` alone;
`train` has checkpoints, which its own processes turn into the model. What is done already is decided here for every
stage: the artefact's manifest names the same inputs and settings.

Whether an artefact of an earlier command is still true is `status.py`; the stages themselves are one file each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codetune import console
from codetune.errors import StaleError
from codetune.launch.environment import Shard
from codetune.project.keys import sealing_keys, value_at
from codetune.project.sections import Project, SealName, StageName
from codetune.records import ModelRef
from codetune.stages.precision import with_kept_precision, with_precision
from codetune.store.digests import Digests
from codetune.store.files import remove, write_text
from codetune.store.locks import locked, waiting
from codetune.store.manifest import Manifest, read_manifest, write_manifest
from codetune.store.run_directory import Run, inspect_run, open_run
from codetune.store.takeover import TAKEN_FROM, take_over

if TYPE_CHECKING:
    from codetune.benchmark.benchmarks import Benchmark
    from codetune.launch.dispatch import RunJob

TOTAL = "total"  # the file beside unfinished work
SAVED = "Progress saved. Run the same command to continue."
RULES = "rules"  # beside the settings of a manifest: the stage's own `rules`
Settings = Mapping[str, Any]  # dotted key of the project file -> value


@dataclass(frozen=True, slots=True)
class RunContext:
    """The context of every stage: the project, its run directory, and the digests known there."""

    project: Project
    run: Run
    digests: Digests


@dataclass(frozen=True, slots=True)
class StageRequest:
    """The request to a stage beside the project: a part of the rows, or the benchmark and the model."""

    # score, embed
    shard: Shard | None = None
    # train
    replace: bool = False  # a finished model, or checkpoints, of another recipe may be discarded
    # generate, sanitize, evaluate
    benchmark: str = ""  # the name of its directory
    label: str = ""  # of the model, or of the user's samples
    tasks: Benchmark | None = None  # None where only the artefacts are looked at
    whole: Benchmark | None = None  # the benchmark that `tasks` are a part of
    model: ModelRef | None = None
    samples: Path | None = None  # a file of the user's instead of a model
    complete: bool = False  # a task without a sample is an error


@dataclass(frozen=True, slots=True)
class Resolved:
    """An input that was found: the digest of its content, and where it lies."""

    digest: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a stage reads.

    `resolve` finds it, and raises InputError if it is missing. `change` returns a sentence that says how it differs
    from what an artefact was made of, or "" if the files on this machine show no difference. `setting` is the key that
    names it in the project file; the name is recorded, but another spelling of the same content changes nothing."""

    name: str
    resolve: Callable[[RunContext, StageRequest], Resolved]
    change: Callable[[RunContext, StageRequest, Path, Manifest, bool], str]
    setting: str = ""
    upstream: Stage | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings and inputs of an artefact that is about to be made; it is done if its manifest has the same."""

    stage: StageName
    artefact: Path
    settings: Settings
    inputs: Mapping[str, str]  # name -> digest
    names: Mapping[str, str]  # key of the project file that names an input -> its value
    overrides: Settings  # settings and names that were given by flag
    paths: Mapping[str, Path] = field(default_factory=dict)  # name of an input -> where it lies

    def made(self, manifest: Manifest | None) -> bool:
        """Whether an artefact with this manifest is what would be made now."""
        if manifest is None:
            return False
        return dict(manifest.settings) == dict(self.settings) and dict(manifest.inputs) == dict(self.inputs)

    def identity(self, without: Sequence[str] = ()) -> dict[str, object]:
        """Settings and inputs in one flat mapping, to be compared with those of unfinished work."""
        return identity(self.settings, {name: digest for name, digest in self.inputs.items() if name not in without})

    def document(self) -> dict[str, object]:
        """As JSON, for worker processes."""
        paths = {name: str(path) for name, path in self.paths.items()}
        return {**asdict(replace(self, paths={})), "artefact": str(self.artefact), "paths": paths}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Recipe:
        paths = {name: Path(path) for name, path in document["paths"].items()}
        return cls(**{**document, "artefact": Path(document["artefact"]), "paths": paths})


@dataclass(frozen=True, slots=True)
class StageOutput:
    """The result of `write`, for the manifest. Not `complete`: rows of other shards are missing, nothing was made."""

    rows: int
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    facts: Mapping[str, object] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of a stage. Of a row stage, `rows` (with a result) and `refused` together are all rows read."""

    stage: StageName
    state: Literal["done", "partial"]  # partial: rows of other shards are missing
    rows: int
    reused: int
    refused: Mapping[str, int]
    artefact: Path
    seconds: float
    overrides: Settings
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def taken_from(self) -> str | None:
        """The run directory that the artefact was copied from; None where this run has made it."""
        return self.facts.get(TAKEN_FROM)


@dataclass(frozen=True, slots=True)
class Details:
    """The lines and the table of a result for people, beside the lines that every stage has. Warnings are shown for a
    whole pipeline as well."""

    notes: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as a value. Adding one is a file with it, its name in `StageName`, and a line in `pipeline.py`.

    evaluate has a second form, for held-out rows: other inputs and settings, an artefact beside its own."""

    name: StageName
    inputs: Callable[[Project, StageRequest], Sequence[Input]]
    artefact: Callable[[Run, StageRequest], Path]
    write: Callable[[RunContext, Recipe, StageRequest], StageOutput]
    # The rest has a default that means: nothing to do, nothing special.
    of_benchmark: bool = False  # one artefact for each benchmark and model, not one for the run
    check: Callable[[RunContext, StageRequest], None] = lambda context, request: None
    # Raises what the stage itself would raise later; called before the stages ahead of it begin, with the paths of
    # those inputs that are there.
    check_ahead: Callable[[RunContext, StageRequest, Mapping[str, Path]], None] = lambda context, request, paths: None
    settings: Callable[[RunContext, StageRequest, Settings], Settings] = lambda context, request, settings: settings
    prepare: Callable[[RunContext, Recipe, StageRequest], None] = lambda context, recipe, request: None
    work: Callable[[RunContext, Recipe, StageRequest], int] = lambda context, recipe, request: 0  # rows found done
    progress: Callable[[RunContext, StageRequest], str | None] = lambda context, request: None  # None: not begun
    has_saved: Callable[[RunContext, StageRequest], bool] = lambda context, request: False  # of unfinished work
    continue_command: Callable[[RunContext], str] = lambda context: ""  # of an unfinished one, if not `command`
    missing_shards: Callable[[RunContext, int], Sequence[int]] | None = None  # of so many; None: it has no shards
    remark: Callable[[RunContext], str] = lambda context: ""  # beside a finished one, for status
    is_taken_over: bool = False  # from another run beside this one that has made it of the same recipe
    facts: Callable[[RunContext, StageRequest], Mapping[str, object]] = lambda context, request: {}  # beside `write`'s
    loss: Callable[[RunContext, Manifest], str] | None = None  # what replacing a finished one destroys; None: no harm
    details: Callable[[StageResult], Details] = lambda result: Details()
    documented: Sequence[str] = ()  # facts that the `--json` document shows
    refused_word: str = "refused"  # beside the counted reasons, for people
    rules: int = 0  # to be raised when codetune makes another artefact of the same; 0: it never has
    additions: Sequence[str] = ()  # settings that only add values to rows: a later stage takes an artefact without them
    seal: SealName | None = None  # the mark of its settings in `project/sections.py`, where it is not the name
    is_needed: Callable[[Project], bool] = lambda project: True
    in_process: RunJob | None = None  # a worker process's share of `work`

    def command(self, request: StageRequest) -> str:
        """The command line that makes the artefact."""
        if not self.of_benchmark:
            return f"codetune {self.name}" + (" --replace" if request.replace and self.loss else "")
        said = request.tasks.reference if request.tasks else request.benchmark
        name = request.model.name if request.model else request.label
        return f"codetune {self.name} {said}" + ("" if name == "tuned" else f" --model {name}")


def open_context(project: Project) -> RunContext:
    """Makes the run directory where it is missing. Raises InputError where it belongs to somebody else."""
    run = open_run(project)
    return RunContext(with_precision(project, run), run, Digests(run))


def read_context(project: Project) -> RunContext:
    """The same without writing anything."""
    run = inspect_run(project)
    return RunContext(with_kept_precision(project, run), run, Digests(run))


def run_stage(context: RunContext, stage: Stage, request: StageRequest | None = None) -> StageResult:
    """Makes the artefact, unless it is there, made of the same, and unharmed.

    Raises InputError where an input is missing or wrong, StaleError where a finished artefact may not be replaced,
    BusyError where another command makes the same artefact, KeyboardInterrupt with a text that says what is saved."""
    request = request or StageRequest()
    stage.check(context, request)
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
        nothing = f"Interrupted before {name} had saved anything. Run the same command to start {name} again."
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
    said = context.project.overrides
    return Recipe(
        stage.name,
        stage.artefact(context.run, request),
        settings,
        {name: found.digest for name, found in resolved.items()},
        names,
        {key: value for key, value in said.items() if key in settings or key in names},
        {name: found.path for name, found in resolved.items() if found.path is not None},
    )


def stage_settings(context: RunContext, stage: Stage, request: StageRequest) -> Settings:
    """The settings that seal the stage's artefact, by dotted key, and the rules that it follows."""
    settings = {key: value_at(context.project, key) for key in sealing_keys(stage.seal or stage.name)}
    return {**stage.settings(context, request, settings), **({RULES: stage.rules} if stage.rules else {})}


def input_names(project: Project, inputs: Sequence[Input]) -> dict[str, str]:
    """The names that the project gives to inputs, by key."""
    return {part.setting: str(value_at(project, part.setting)) for part in inputs if part.setting}


def identity(settings: Settings, inputs: Mapping[str, str]) -> dict[str, object]:
    return {**settings, **{f"{name} (digest)": digest for name, digest in inputs.items()}}


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
    """From here on the artefact exists."""
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
    return f"{artefact} was made {made}with {key} {values[0]!r}, {asked} now says {values[1]!r}"


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
