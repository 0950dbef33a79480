"""`model.dtype: auto` -> the number format that this machine multiplies fastest.

Measured once and kept with the run: the format seals artefacts, so every stage, shard and later command has to have the
same. Imports torch inside a function: a project that names its format never needs it here."""

from __future__ import annotations

from typing import get_args

from codetune import console
from codetune.project.sections import Precision, Project
from codetune.store.files import write_text
from codetune.store.locks import waiting
from codetune.store.run_directory import Run


def with_kept_precision(project: Project, run: Run) -> Project:
    """The project with the format in the place of `auto`; the same project where none was found yet."""
    kept = run.precision
    if project.model.dtype != "auto" or not kept.exists():
        return project
    found = kept.read_text(encoding="ascii").strip()
    assert found in get_args(Precision)  # written below
    model = project.model.model_copy(update={"dtype": found})
    return project.model_copy(update={"model": model})


def with_precision(project: Project, run: Run) -> Project:
    """The project with a format in the place of `auto`, which is found now if it was not before."""
    if project.model.dtype != "auto":
        return project
    with waiting(run, "precision"):
        if not run.precision.exists():
            from codetune.launch.devices import find_precision

            found, reason = find_precision()
            write_text(run.precision, f"{found}\n")
            console.say(f"model.dtype auto is {found} for this run: {reason}")
    return with_kept_precision(project, run)
