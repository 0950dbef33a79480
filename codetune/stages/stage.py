"""What a stage is: the record of one, of what it is asked for, and of what comes of it.

A stage turns inputs, known by the digest of their content, and the settings that seal it into one artefact. It does so
in two steps: `work` makes durable parts (block logs, completions, verdicts), resumable and in as many processes as
there are; `write` makes the artefact of them. A stage without parts has `write` alone; `train` has checkpoints, which
its own processes turn into the model. Stages are run in `runner.py`; each of them is a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codetune.launch.environment import Shard
from codetune.project.sections import Project, SealName, StageName
from codetune.records import TUNED, ModelRef
from codetune.store.digests import Digests
from codetune.store.manifest import Manifest
from codetune.store.run_directory import Run
from codetune.store.takeover import TAKEN_FROM

if TYPE_CHECKING:
    from codetune.benchmark.benchmarks import Benchmark
    from codetune.launch.dispatch import RunJob

Settings = Mapping[str, object]  # dotted key of the project file -> value


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
class SealedArtefact:
    """A finished artefact that is compared with what would be made now. With `allow_overrides`, what was given by flag
    when it was made may differ from the project."""

    path: Path
    manifest: Manifest
    allow_overrides: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a stage reads.

    `resolve` finds it, and raises InputError if it is missing. `change` returns a sentence that says how it differs
    from what an artefact was made of, or "" if the files on this machine show no difference. `setting` is the key that
    names it in the project file; the name is recorded, but another spelling of the same content changes nothing."""

    name: str
    resolve: Callable[[RunContext, StageRequest], Resolved]
    change: Callable[[RunContext, StageRequest, SealedArtefact], str]
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
    optional: Sequence[str] = ()  # columns that a narrow terminal leaves out first


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
    afterwards: Callable[[RunContext], None] = lambda context: None  # once it is finished: what is told of it elsewhere
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
        reference = request.tasks.reference if request.tasks else request.benchmark
        name = request.model.name if request.model else request.label
        return f"codetune {self.name} {reference}" + ("" if name == TUNED else f" --model {name}")


def identity(settings: Settings, inputs: Mapping[str, str]) -> dict[str, object]:
    return {**settings, **{f"{name} (digest)": digest for name, digest in inputs.items()}}
