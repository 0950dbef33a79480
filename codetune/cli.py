"""The command line: parse, load the project, call the verb, show the result. No work is done here, and nothing heavy is
imported before the project file is known to be right: `--help` and every mistake of usage or project file come at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codetune import __version__, console
from codetune.errors import BusyError, CodetuneError, InputError, UsageError, writing_failed
from codetune.launch import dispatch
from codetune.launch.environment import Node, current_node, current_rank, parse_shard, prepare_process, worker_task
from codetune.launch.workers import exit_process
from codetune.options import (
    METHODS,
    PAD_MODES,
    STAGES_HELP,
    BenchmarkArgument,
    CompleteOption,
    InstructOption,
    JsonOption,
    LimitOption,
    ModelOption,
    ModelsOption,
    ProjectOption,
    SamplesOption,
    SetOption,
    ShardOption,
    TasksOption,
    only_samples,
    optional_project,
    prompt_flag,
    require_unicode,
    required_project,
)
from codetune.project.file import commented_yaml, read_project
from codetune.project.presets import PRESETS
from codetune.project.sections import PROJECT_FILE, Project
from codetune.stages.jobs import run_job

if TYPE_CHECKING:
    from codetune.console import CommandResult
    from codetune.stages.status import RunContext

_WrongUsage: Any = typer.BadParameter.__base__  # click's UsageError, which typer 0.29 has a copy of
app = typer.Typer(
    help="Fine-tune a code LLM on the part of an instruction set that is worth training on; measure what that bought.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Commands of the contract that this version lacks; values of the project file: project.NOT_IN_THIS_VERSION.
NOT_IN_THIS_VERSION = ("plan", "sweep", "report", "doctor")


def main() -> None:
    """The console script, and what its workers and the ranks of a launcher begin with."""
    prepare_process()
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler's way of asking to stop means the same
        if signal.getsignal(number) is signal.SIG_DFL:  # as __main__ left the first; not where it is ignored
            signal.signal(number, signal.default_int_handler)
    try:
        if (task := worker_task()) is not None:
            dispatch.run_worker(task, run_job)
        elif current_rank().rank > 0:
            dispatch.run_follower(run_job)
        else:
            _lead()
    except CodetuneError as error:
        # What holds a lock is another command, told as it was given.
        message = str(error) if isinstance(error, BusyError) else console.with_project_option(str(error))
        console.show_error(type(error)(message))
        sys.exit(error.exit_status)
    except KeyboardInterrupt:  # a rank that follows; the first one says what it means
        exit_process(130)


def _lead() -> None:
    try:
        require_unicode(sys.argv)
        sys.exit(_answer())
    finally:
        dispatch.release_followers()


def _answer() -> int:
    """The exit status of the command. What typer says of a wrong command line is told as every other error is."""
    try:
        status = app(prog_name="codetune", standalone_mode=False)
        sys.stdout.flush()
    except _WrongUsage as why:
        if type(why).__name__ == "NoArgsIsHelpError":  # its message is the help
            why.show()
            return int(why.exit_code)
        command = why.ctx.command_path if why.ctx else "codetune"
        message = why.format_message()
        raise UsageError(f"{message}{'' if message[-1] in '.?' else '.'} See: {command} --help") from None
    except OSError as why:  # of standard output, while help was written to it
        if why.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is left in the buffer
        if why.errno == errno.EPIPE:
            return 1
        raise CodetuneError(f"writing failed: {why.strerror} (standard output). Send it somewhere else") from None
    return status if isinstance(status, int) else 0


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.show(console.CommandResult({"version": __version__}, f"codetune {__version__}"), False, sys.stdout)
        raise typer.Exit


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR")] = Path(),
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = "deepseek-oss",
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented project file."""
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: no such preset; expected one of: {', '.join(PRESETS)}")
    values = {**PRESETS[preset], **read_project(None, set_ or [], {}).overrides}
    if (path := directory / PROJECT_FILE).exists():
        raise InputError(f"{path} exists already; it was left as it is. Name another directory: codetune init DIR")

    def write() -> CommandResult:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(commented_yaml(values), encoding="utf-8")
        return console.CommandResult(
            {"artefact": str(path), "preset": preset}, f"wrote {path}", notes=["edit it, then: codetune run"]
        )

    _perform(write, as_json)


@app.command()
def score(
    shard: ShardOption = None, project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """IFD of every row -> scores.jsonl."""
    part = parse_shard(shard) if shard is not None else None
    _stage(lambda verbs, context: verbs.score(context, part), required_project(project, set_, {}), as_json)


@app.command()
def embed(
    shard: ShardOption = None, project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False
) -> None:
    """Embeddings of the instructions -> embeddings.npy."""
    part = parse_shard(shard) if shard is not None else None
    _stage(lambda verbs, context: verbs.embed(context, part), required_project(project, set_, {}), as_json)


@app.command()
def select(
    ratio: Annotated[float | None, typer.Option(help="Share of the rows to take.")] = None,
    clusters: Annotated[int | None, typer.Option(help="K of K-means.")] = None,
    strategy: Annotated[str | None, typer.Option(help="ifd_cluster, random or all.")] = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """The rows worth training on -> selection.jsonl, chat format."""
    flags = {"select.ratio": ratio, "select.clusters": clusters, "select.strategy": strategy}
    _stage(lambda verbs, context: verbs.select(context), required_project(project, set_, flags), as_json)


@app.command()
def train(
    pad_mode: Annotated[str | None, typer.Option(help=PAD_MODES)] = None,
    method: Annotated[str | None, typer.Option(help=METHODS)] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, not from the last checkpoint.")] = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on the selection -> model/. Continues from its last checkpoint by itself."""
    loaded = required_project(project, set_, {"train.pad_mode": pad_mode, "train.method": method})
    if (here := current_node(loaded.launch.nodes)).rank > 0:
        _perform(lambda: _follow(loaded, here), as_json)
    else:
        _stage(lambda verbs, context: verbs.train(context, restart), loaded, as_json)


@app.command()
def generate(
    benchmark: BenchmarkArgument,
    model: ModelOption = None,
    instruct: InstructOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Completions of a benchmark's tasks. Continues where it stopped."""
    loaded = optional_project(project, set_, prompt_flag(instruct))

    def work() -> CommandResult:
        from codetune import render
        from codetune.stages import evaluate

        context = _context(loaded)
        bench = evaluate.open_bench(context, benchmark)
        model_ref = evaluate.model_ref(context, _model(context, model))
        return render.stage(evaluate.generate(context, bench, model_ref))

    _perform(work, as_json)


@app.command()
def sanitize(
    source: Annotated[str, typer.Argument(metavar="BENCHMARK|FILE", help="A benchmark, or a file of samples.")],
    model: ModelOption = None,
    instruct: InstructOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Completions -> programs that can be run."""
    loaded = optional_project(project, set_, prompt_flag(instruct))

    def work() -> CommandResult:
        from codetune import render
        from codetune.stages import evaluate

        context = _context(loaded)
        if evaluate.is_samples_file(context, source):
            return render.stage(evaluate.sanitize_file(context, Path(source)))
        bench = evaluate.open_bench(context, source)
        model_ref = evaluate.model_ref(context, _model(context, model))
        return render.stage(evaluate.sanitize(context, bench, model_ref))

    _perform(work, as_json)


@app.command()
def evaluate(
    benchmark: BenchmarkArgument,
    samples: SamplesOption = None,
    model: ModelOption = None,
    instruct: InstructOption = None,
    limit: LimitOption = None,
    task: TasksOption = None,
    complete: CompleteOption = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Programs -> pass@k."""
    file = only_samples(samples, model)
    loaded = optional_project(project, set_, prompt_flag(instruct))

    def work() -> CommandResult:
        from codetune import render
        from codetune.stages import evaluate

        context = _context(loaded)
        bench = evaluate.open_bench(context, benchmark)
        part = evaluate.part_of(bench, limit, task or [], complete)
        if file:
            return render.evaluation([evaluate.evaluate_file(context, part, file)], [])
        model_ref = evaluate.model_ref(context, _model(context, model, ", or --samples FILE"))
        return render.evaluation([evaluate.evaluate(context, bench, model_ref, part)], [])

    _perform(work, as_json)


@app.command(name="eval")
def eval_(
    benchmark: BenchmarkArgument,
    models: ModelsOption = None,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="Also every checkpoint of the run's training, and `tuned`.")
    ] = False,
    instruct: InstructOption = None,
    limit: LimitOption = None,
    task: TasksOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate, sanitize and evaluate in one go; several models are compared."""
    loaded = optional_project(project, set_, prompt_flag(instruct))

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.stages import evaluate, model_ref

        context = _context(loaded)
        bench = evaluate.part_of(evaluate.open_bench(context, benchmark), limit, task or [], complete=False)
        names = [*(model_ref.names_of_the_run(context, models or []) if all_checkpoints else models or [])]
        reports = workflow.evaluate_by_name(context, bench, list(dict.fromkeys(names or [_model(context, None)])))
        return render.evaluation(reports, workflow.compare(context, reports))

    _perform(work, as_json)


@app.command()
def run(
    first: Annotated[str, typer.Option("--from", metavar="STAGE", help=f"First stage: {STAGES_HELP}")] = "score",
    last: Annotated[str, typer.Option("--to", metavar="STAGE", help=f"Last stage: {STAGES_HELP}")] = "evaluate",
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline; what is done and still true is not done again."""
    from codetune import workflow

    stages = workflow.stages_between(first, last)
    loaded = required_project(project, set_, {})

    def work() -> CommandResult:
        from codetune import render

        context = _context(loaded)
        results = list(workflow.run(context, stages))
        return render.journey(results, workflow.compare(context, workflow.reports_in(results)))

    _perform(work, as_json)


@app.command()
def status(project: ProjectOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """A line per stage: done, stale (and why), partial (how far), missing; and the next command."""
    loaded = required_project(project, set_, {})

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.stages import stage as pipeline

        lines = workflow.status(pipeline.read_context(loaded))
        return render.status([replace(line, command=console.with_project_option(line.command)) for line in lines])

    _perform(work, as_json)


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR")] = Path("codetune-demo"),
    full: Annotated[bool, typer.Option("--full", help="Also the controls: a random draw, and all rows.")] = False,
    seed: Annotated[int, typer.Option(help="Of the tasks, the data set and the training.")] = 42,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """A complete little world without any download, run through every stage."""
    read_project(None, set_ or [], {})  # mistakes in them are told before the world is made

    def work() -> CommandResult:
        from codetune.demo import run

        return run.demo(directory, full, seed, set_ or [])

    _perform(work, as_json)


def _lacking(name: str) -> Callable[[], None]:
    def refuse() -> None:
        raise UsageError(f"codetune {name} is not in this version. What there is: codetune --help")

    return refuse


for _name in NOT_IN_THIS_VERSION:
    _anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(_name, hidden=True, context_settings=_anything)(_lacking(_name))


def _context(project: Project) -> RunContext:
    from codetune.stages.stage import open_context

    return open_context(project)


def _model(context: RunContext, said: str | None, instead: str = "") -> str:
    """`tuned` where the run has one; otherwise the user has to say which, or what else there is."""
    if said is not None:
        return said
    if context.run.model.exists():
        return "tuned"
    raise UsageError(
        f"{context.run.directory} has no trained model, so --model must say which; expected base, a path or a hub id, "
        f"such as --model base{instead}. Or train one: codetune train"
    )


def _stage(verb: Callable[[Any, RunContext], Any], project: Project, as_json: bool) -> None:
    def work() -> CommandResult:
        from codetune import render
        from codetune.stages import stage as pipeline

        return render.stage(verb(pipeline, _context(project)))

    _perform(work, as_json)


def _follow(project: Project, here: Node) -> CommandResult:
    """On every machine but the first: what the first one begins."""
    dispatch.run_follower_node(project, here)
    return console.CommandResult({"node": here.rank, "state": "done"}, f"done, as machine {here.rank} of {here.count}")


def _perform(work: Callable[[], CommandResult], as_json: bool) -> None:
    """Does the work and shows what came of it; says what an interrupt and a full disk mean."""
    try:
        with console.reserved_stdout() as output:
            console.show(work(), as_json, output)
    except KeyboardInterrupt:
        console.say("interrupted; what was finished is kept, and the same command goes on from there")
        raise typer.Exit(130) from None
    except OSError as why:
        if (failed := writing_failed(why)) is None:
            raise
        raise failed from why
