"""The commands that run no stage themselves: those that look, and `slurm`, which writes jobs. Imports what they need
inside functions, as `cli.py` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetune import console
from codetune.cli_app import perform
from codetune.cli_options import (
    JsonOption,
    ProjectOption,
    SetOption,
    optional_project,
    required_project,
    with_project_option,
)
from codetune.launch.dispatch import run_follower_node
from codetune.launch.environment import Node, current_node
from codetune.project.sections import PROJECT_FILE

if TYPE_CHECKING:
    from codetune.console import CommandResult
    from codetune.project.sections import Project


def status(project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Show the state of each stage (done, stale, partial or missing) and the next command."""
    loaded = required_project(project, set_, {})

    def work() -> CommandResult:
        from codetune import render
        from codetune.run_status import run_status
        from codetune.stages.runner import read_context

        return render.status(
            [
                dataclasses.replace(line, command=with_project_option(line.command, all_settings=True))
                for line in run_status(read_context(loaded))
            ]
        )

    perform(work, as_json, changes_nothing=True)


def plan(
    price: Annotated[
        float | None, typer.Option(metavar="PRICE", min=0, max=1e6, help="Price of one GPU for an hour.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Plan for this card, such as H100 or A100-80GB, not this machine."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure the speed: train some steps, and throw them away.")
    ] = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything, and tell what a run takes and costs: rows, padding, memory, time. Trains nothing."""
    loaded = required_project(project, set_, {})

    def work() -> CommandResult:
        from codetune.report import plan_text
        from codetune.report.plan import make_plan
        from codetune.report.plan_parts import PlanOptions
        from codetune.stages.runner import read_context

        found = make_plan(read_context(loaded), PlanOptions(price, gpu, probe))
        return plan_text.plan(found, loaded)

    perform(work, as_json, changes_nothing=True)


def report(
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every figure into this directory, too, as PNG and SVG.")
    ] = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write OUTPUT_DIR/report.html: what was taken, trained and measured, as one page that needs no server."""
    loaded = required_project(project, set_, {})

    def work() -> CommandResult:
        from codetune.report.page import make_report
        from codetune.stages.runner import read_context

        return _with_whole_commands(make_report(read_context(loaded), figures))

    perform(work, as_json)


def doctor(
    nodes: Annotated[
        bool,
        typer.Option("--nodes", help="Compare the machines of a run, on which torchrun or srun starts it."),
    ] = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what this machine has and lacks, and the command that ends each lack."""
    loaded = optional_project(project, set_, None, [])
    if nodes and (here := current_node(loaded.launch.nodes)).rank > 0:
        perform(lambda: follow(loaded, here), as_json)
        return

    def work() -> CommandResult:
        from codetune.report import doctor_text
        from codetune.report.doctor import examine_machine
        from codetune.report.nodes import examine_nodes
        from codetune.stages.runner import read_context

        if nodes:
            return doctor_text.doctor(examine_nodes(loaded, project))
        findings = examine_machine(read_context(loaded))
        return doctor_text.doctor(list(console.track(findings, "doctor", None, "check")))

    perform(work, as_json, changes_nothing=True)


def slurm(
    submit: Annotated[bool, typer.Option("--submit", help="Submit the jobs, too, by sbatch.")] = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what is left to do as jobs of a Slurm cluster, in job arrays where it can be divided."""
    loaded = required_project(project, set_, {})
    arguments = ["--project", str((project or Path(PROJECT_FILE)).absolute())]
    arguments += [word for assignment in set_ or [] for word in ("--set", assignment)]

    def work() -> CommandResult:
        from codetune.slurm_jobs import slurm_result, write_jobs
        from codetune.stages.runner import open_context

        context = open_context(loaded)
        return _with_whole_commands(slurm_result(write_jobs(context, arguments, Path.cwd(), submit), context.run.slurm))

    perform(work, as_json)


def _with_whole_commands(result: CommandResult) -> CommandResult:
    """The commands that its asides name are of the project and the settings of this command."""
    asides = [with_project_option(line, all_settings=True) for line in result.asides]
    return dataclasses.replace(result, asides=asides)


def explanation(project: Project, row: str) -> CommandResult:
    """What `select --explain ID` shows."""
    from codetune import render
    from codetune.stages.explanation import explain_row
    from codetune.stages.runner import read_context

    return render.explanation(explain_row(read_context(project), row))


def follow(project: Project, here: Node) -> CommandResult:
    """Does, on every machine but the first, what the first one begins."""
    run_follower_node(project, here)
    return console.CommandResult(
        f"done, as machine {here.rank} of {here.count}", document={"node": here.rank, "state": "done"}
    )
