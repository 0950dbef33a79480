"""The command line: parse, load the project, call the workflow, show the result. No work is done here, and nothing
heavy is imported before the project file is known to be right: `--help` and errors of usage or project file come at
once."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetune import __version__, console
from codetune.cli_app import AROUND, PIPELINE, STAGES, START, perform
from codetune.cli_app import app as app  # for main.py
from codetune.cli_benchmarks import eval_, evaluate, generate, sanitize
from codetune.cli_inspection import doctor, explanation, follow, plan, report, slurm, status
from codetune.cli_options import (
    METHODS,
    PAD_MODES,
    STRATEGIES,
    BenchmarksOption,
    ControlsOption,
    JsonOption,
    LimitOption,
    ProjectOption,
    PushOption,
    RatiosOption,
    ReplaceOption,
    SetOption,
    ShardOption,
    SideBySideOption,
    StrategiesOption,
    number_or_word,
    one_of,
    require_outcome,
    required_project,
    stage_option,
    varied_values,
)
from codetune.errors import UsageError
from codetune.launch.environment import Shard, current_node, parse_shard
from codetune.project.file import read_project, write_project
from codetune.project.presets import PRESETS
from codetune.project.sections import PROJECT_FILE, STAGE_NAMES, Project, StageName
from codetune.project.variations import split_variations

if TYPE_CHECKING:
    from codetune.console import CommandResult


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.show(
            console.CommandResult(f"codetune {__version__}", document={"version": __version__}), False, sys.stdout
        )
        raise typer.Exit


@app.command(rich_help_panel=START)
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR")] = Path(),
    preset: Annotated[str, one_of(PRESETS)] = "deepseek-oss",
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented project file."""
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: no such preset; expected one of: {', '.join(PRESETS)}")
    project = read_project(None, set_ or [], {}, preset=PRESETS[preset])

    def write() -> CommandResult:
        path = write_project(directory, {**PRESETS[preset], **project.overrides})
        return console.CommandResult(
            f"wrote {path}",
            asides=[f"edit it, then run: codetune run{'' if directory == Path() else f' -p {shlex.quote(str(path))}'}"],
            document={"artefact": str(path), "preset": preset},
        )

    perform(write, as_json)


@app.command(rich_help_panel=STAGES)
def score(
    shard: ShardOption = None, project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Score every row by its instruction-following difficulty (IFD) -> scores.jsonl."""
    part = parse_shard(shard) if shard is not None else None
    _run_stage("score", required_project(project, set_, {}, ["score"]), as_json, shard=part)


@app.command(rich_help_panel=STAGES)
def embed(
    shard: ShardOption = None, project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Embed the instructions -> embeddings.npy."""
    part = parse_shard(shard) if shard is not None else None
    _run_stage("embed", required_project(project, set_, {}, ["embed"]), as_json, shard=part)


@app.command(rich_help_panel=STAGES)
def select(
    ratio: Annotated[
        float | None, typer.Option(help="Share to take of the eligible rows (of all, with select.ratio_of=all).")
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="Take exactly N rows, instead of a share.")] = None,
    clusters: Annotated[str | None, typer.Option(help="Number of clusters (K-means), or auto.")] = None,
    strategy: Annotated[str | None, STRATEGIES] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="Of a finished selection: why this row was taken or not.")
    ] = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Select the rows worth training on -> selection.jsonl, in chat format."""
    if ratio is not None and count is not None:
        raise UsageError(f"--ratio {ratio:g} and --count {count} exclude each other. Name one of them")
    flags = {
        "select.ratio": ratio,
        "select.count": count,
        "select.clusters": number_or_word(clusters),
        "select.strategy": strategy,
    }
    cleared = [] if ratio is None else ["select.count"]  # a count in the file would take the place of the ratio
    loaded = required_project(project, set_, flags, ["select"], cleared)
    if explain is None:
        _run_stage("select", loaded, as_json)
    else:
        perform(lambda: explanation(loaded, explain), as_json)


@app.command(rich_help_panel=STAGES)
def train(
    pad_mode: Annotated[str | None, PAD_MODES] = None,
    method: Annotated[str | None, METHODS] = None,
    replace: ReplaceOption = False,
    push: PushOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on the selection -> model/. Continues from its last checkpoint by itself."""
    flags = {"train.pad_mode": pad_mode, "train.method": method}
    loaded = required_project(project, set_, flags, ["train"])
    if (here := current_node(loaded.launch.nodes)).rank > 0:
        perform(lambda: follow(loaded, here), as_json)
    elif push is None:
        _run_stage("train", loaded, as_json, replace=replace)
    else:
        _train_and_push(loaded, push, as_json, replace)


for _of_benchmark in (generate, sanitize, evaluate):
    app.command(rich_help_panel=STAGES)(_of_benchmark)
app.command(name="eval", rich_help_panel=PIPELINE)(eval_)


@app.command(rich_help_panel=PIPELINE)
def run(
    first: Annotated[str, stage_option("--from", "First")] = STAGE_NAMES[0],
    last: Annotated[str, stage_option("--to", "Last")] = STAGE_NAMES[-1],
    replace: ReplaceOption = False,
    limit: LimitOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline. Up-to-date stages are skipped."""
    from codetune.stages import pipeline

    stages = pipeline.stages_between(first, last)
    loaded = required_project(project, set_, {}, [stage.name for stage in stages])

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.stages.likelihood import likelihoods_in
        from codetune.stages.runner import open_context

        context = open_context(loaded)
        results = list(workflow.run(context, stages, replace, limit))
        reports = workflow.reports_in(context, results)
        return render.pipeline(results, reports, workflow.compare(context, reports), *likelihoods_in(context, results))

    perform(work, as_json)


@app.command(rich_help_panel=PIPELINE)
def sweep(
    ratio: RatiosOption = None,
    strategy: StrategiesOption = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each variant; more can be added later.")] = 1,
    controls: ControlsOption = True,
    benchmarks: BenchmarksOption = True,
    side_by_side: SideBySideOption = None,
    replace: ReplaceOption = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run each combination of settings (--set KEY=[A,B] as well) with several seeds; compare them with controls."""
    fixed, lists = split_variations(set_ or [])
    varied = varied_values(strategy, ratio, fixed, lists)
    loaded = required_project(project, fixed, {})
    require_outcome(loaded, benchmarks)

    def work() -> CommandResult:
        from codetune import render
        from codetune.sweep.outcomes import sweep_outcomes
        from codetune.sweep.perform import run_sweep
        from codetune.sweep.variants import Sweep

        parts = (project or Path(PROJECT_FILE), fixed, varied, seeds)
        asked = Sweep(*parts, controls, benchmarks, replace, side_by_side)
        for name in run_sweep(asked):
            console.say(f"sweep: {name} is done")
        return render.sweep(sweep_outcomes(asked), asked.table)

    perform(work, as_json)


for _command in (status, plan, report, doctor, slurm):
    app.command(rich_help_panel=AROUND)(_command)


@app.command(rich_help_panel=START)
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR")] = Path("codetune-demo"),
    full: Annotated[bool, typer.Option("--full", help="Also train on a random draw and on all rows.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the tasks, the data set and the training.")] = 42,
    replace: ReplaceOption = False,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a small data set, benchmark and model, and run every stage on them. Downloads nothing."""
    read_project(None, set_ or [], {})  # mistakes in them are told before the world is made

    def work() -> CommandResult:
        from codetune.demo import run

        return run.demo(directory, full, seed, set_ or [], replace)

    perform(work, as_json)


def _run_stage(
    name: StageName, project: Project, as_json: bool, shard: Shard | None = None, replace: bool = False
) -> None:
    def work() -> CommandResult:
        from codetune import render
        from codetune.stages.pipeline import stage_named
        from codetune.stages.runner import open_context, run_stage
        from codetune.stages.stage import StageRequest

        return render.stage(run_stage(open_context(project), stage_named(name), StageRequest(shard, replace)))

    perform(work, as_json)


def _train_and_push(project: Project, repository: str, as_json: bool, replace: bool) -> None:
    def work() -> CommandResult:
        from codetune import render
        from codetune.stages.push import push_model, require_pushable
        from codetune.stages.runner import open_context, run_stage
        from codetune.stages.stage import StageRequest
        from codetune.stages.train import TRAIN

        context = open_context(project)
        require_pushable(context, repository)
        result = run_stage(context, TRAIN, StageRequest(replace=replace))
        return render.pushed(result, push_model(context, repository))

    perform(work, as_json)
