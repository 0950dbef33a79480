"""The commands that look and run no stage. Imports what they need inside functions, as `cli.py` does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from codetune import console
from codetune.commands import perform
from codetune.options import JsonOption, ProjectOption, SetOption, required_project

if TYPE_CHECKING:
    from codetune.console import CommandResult


def status(project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Show the state of each stage (done, stale, partial or missing) and the next command."""
    loaded = required_project(project, set_, {})

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.stages.stage import read_context

        lines = workflow.status(read_context(loaded))
        return render.status(
            [dataclasses.replace(line, command=console.with_project_option(line.command)) for line in lines]
        )

    perform(work, as_json)
