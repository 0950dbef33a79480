"""The run directory: the path of each artefact, and the check that the directory belongs to the project.

    <output_dir>/project.json              the resolved project that the run was made with
    <output_dir>/<artefact>                examples.jsonl, scores.jsonl, embeddings.npy, model/, ...
    <output_dir>/<artefact>.seal           its manifest (manifest.py)
    <output_dir>/<artefact>.parts/         finished rows of an artefact in the making (block_log.py)
    <output_dir>/.cache/ .locks/ .before/  digests, locks (locks.py), artefacts kept until their successor is sealed

Knows nothing of what the artefacts mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from codetune.errors import InputError, unusable_directory
from codetune.project.sections import Project
from codetune.store.files import write_text
from codetune.text import lone_surrogate

ADVICE = "Set output_dir to another directory"
CARD = "README.md"  # in a model's directory, for people and the Hub; no part of what the model is known by
METRICS = "metrics.jsonl"  # in the directory of a training
MERGED_ADAPTERS = "adapter"  # the directory of the adapters, in that of the model they are merged into


class Run:
    """The paths of one run. Benchmark artefacts are named by benchmark and model label."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project = directory / "project.json"
        self.examples = directory / "examples.jsonl"
        self.scores = directory / "scores.jsonl"
        self.embeddings = directory / "embeddings.npy"
        self.embedding_ids = directory / "embeddings.ids"
        self.selection = directory / "selection.jsonl"
        self.excluded = directory / "selection.excluded.jsonl"
        self.holdout = directory / "holdout.jsonl"
        self.selection_report = directory / "selection.report.json"
        self.dataset_info = directory / "dataset_info.json"
        self.report = directory / "report.html"
        self.model = directory / "model"
        self.train = directory / "train"
        self.sweep = directory.with_name(f"{directory.name}-sweep")  # of the runs of a sweep, beside this one
        self.sweep_table = self.sweep / "sweep.json"
        self.next_train = directory / "train.next"  # of a training that is going to replace a finished one

    def projection(self, settings_digest: str) -> Path:
        """The fitted state of the offline embedder for these settings."""
        return self.directory / ".cache" / f"projection-{settings_digest[:16]}.npy"

    def tokens_per_batch(self, settings_digest: str) -> Path:
        """The tokens of a forward pass for which the first GPU had memory, with these settings."""
        return self.directory / ".cache" / f"tokens-per-batch-{settings_digest[:16]}"

    @property
    def precision(self) -> Path:
        """The number format that was found for `model.dtype: auto`."""
        return self.directory / ".cache" / "precision"

    @property
    def slurm(self) -> Path:
        """The directory of the job scripts and the logs of their jobs."""
        return self.directory / "slurm"

    def before(self, stage: str) -> Run:
        """The directory that keeps a stage's last artefact until the one that replaces it is sealed."""
        return Run(self.directory / ".before" / stage)

    def completions(self, benchmark: str, label: str) -> Path:
        return self.directory / "completions" / benchmark / f"{label}.jsonl"

    def solutions(self, benchmark: str, label: str) -> Path:
        return self.directory / "solutions" / benchmark / f"{label}.jsonl"

    @property
    def evaluations(self) -> Path:
        """The directory with one of each benchmark that was evaluated."""
        return self.directory / "evaluation"

    def evaluation(self, benchmark: str, label: str) -> Path:
        return self.evaluations / benchmark / f"{label}.json"

    def parts(self, artefact: Path) -> Path:
        """The directory of the logs of finished rows (block_log.py) while `artefact` is being made."""
        return artefact.with_name(f"{artefact.name}.parts")


def files_of(artefact: Path) -> tuple[Path, ...]:
    """The files of an artefact, itself first: embeddings have their ids beside them, a selection its diagnostics, and
    its held-out rows, if there are any."""
    run = Run(artefact.parent)
    of_selection = (run.selection_report, run.holdout)
    return (artefact, *{run.embeddings: (run.embedding_ids,), run.selection: of_selection}.get(artefact, ()))


class ProjectDocument(TypedDict):
    """A resolved project as JSON: all that another process needs to work on it."""

    root: str  # the directory of the project file
    overrides: dict[str, object]  # dotted key -> value, given by flag
    settings: dict[str, object]  # all keys of the project file


@dataclass(frozen=True, slots=True)
class _Owner:
    """The project that made a run directory. `is_copied`: the directory was copied or renamed since then."""

    name: str
    is_copied: bool


def open_run(project: Project) -> Run:
    """Creates the project's run directory where it is missing and writes its `project.json`. Raises InputError as
    `inspect_run` does, and where the directory cannot be created."""
    run = inspect_run(project)
    directory = run.directory
    document = json.dumps(project_document(project), indent=2, ensure_ascii=False)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(run.project, f"{document}\n")
    except OSError as why:
        raise unusable_directory(directory, why, ADVICE) from None
    return run


def inspect_run(project: Project) -> Run:
    """The project's run, without writing anything; its directory need not exist. Raises InputError where the directory
    belongs to another project, holds files that no run of codetune wrote, or is a file, and where a path is not
    UTF-8."""
    run, directory = Run(project.run_dir), project.run_dir
    for path in (project.root, directory):
        require_unicode_path(path)
    try:
        owner = _owner(run.project)
        names = _names_in(directory)
    except OSError as why:
        raise unusable_directory(directory, why, ADVICE) from None
    if owner is not None and owner.name != project.name and not owner.is_copied:
        raise InputError(
            f"{directory} belongs to project {owner.name!r}, this one is {project.name!r}. Set output_dir to another "
            f"directory, or name: {owner.name}; a copy of that directory may have any name"
        )
    # Hidden files do not count: a killed run may leave temporary ones.
    if owner is None and (foreign := [name for name in names if name[0] != "."]):
        raise InputError(
            f"{directory} holds {foreign[0]} but no project.json: not a run of codetune. Set output_dir to a new "
            "directory"
        )
    return run


def project_document(project: Project) -> ProjectDocument:
    """The JSON form of a resolved project, for project.json and for worker processes."""
    return {"root": str(project.root), "overrides": dict(project.overrides), "settings": project.model_dump()}


def project_of(document: ProjectDocument) -> Project:
    """The project that `project_document` wrote."""
    return Project.model_validate(document["settings"]).placed(Path(document["root"]), document["overrides"])


def require_unicode_path(path: Path) -> None:
    """Raises InputError for a path that is not UTF-8: records and scripts, which are, could not hold it."""
    if lone_surrogate(str(path)) is not None:
        raise InputError(f"{str(path)!a} is not UTF-8. Expected: names in UTF-8. Rename the directory")


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []


def _owner(record: Path) -> _Owner | None:
    """The project that a `project.json` belongs to; None where the file does not exist."""
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
        name = str(settings["name"])
        made_in = Path(settings.get("output_dir") or f"runs/{name}").parts
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{record} is not what codetune writes there. Set output_dir to another directory, or, if this is a run of "
            "codetune whose file is damaged, write the name of its project into it: "
            f"""echo '{{"settings": {{"name": "NAME"}}}}' > {record}"""
        ) from None
    return _Owner(name, record.absolute().parent.parts[-len(made_in) :] != made_in)
