"""A benchmark as the stages use it: the tasks behind a name or a path, a part of them, and the name of the directory
that its artefacts are kept in. Reads tasks; runs none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codetune import console
from codetune.benchmark import benchmarks
from codetune.benchmark.benchmarks import (
    Benchmark,
    artefact_name,
    benchmark_at_hand,
    benchmark_digest,
    locate_benchmark,
    read_problems,
    spec_named,
    spec_of,
    stem_of,
)
from codetune.benchmark.evalplus_format import holds_samples, read_samples
from codetune.benchmark.parts import part_of
from codetune.benchmark.published_tasks import is_published
from codetune.benchmark.tasks_apart import picked_tasks, tasks_left, without_tasks
from codetune.console import quantity
from codetune.errors import DataError, UsageError
from codetune.records import Problem
from codetune.stages.stage import Input, Resolved, RunContext, SealedArtefact, StageRequest
from codetune.user_files import require_plain_file

NAMED_TASKS = 5  # at most, in a warning
IS_PART = "is_part"  # fact of completions, programs and evaluations


def open_benchmark(context: RunContext, reference: str) -> Benchmark:
    """The benchmark as it is reported: without the tasks of `train.tasks`, which is said. Raises as
    `open_whole_benchmark`, and UsageError where no task is left."""
    whole = open_whole_benchmark(context, reference)
    reported = without_tasks(whole, tasks_apart(context))
    if apart := len(whole.problems) - len(reported.problems):
        console.say_once(
            f"{whole.title}: {quantity(apart, 'task')} of {len(whole.problems)} left out for every model: the weights "
            "are chosen on them (train.tasks)"
        )
    return reported


def tasks_apart(context: RunContext) -> Sequence[Problem]:
    """The tasks that pass@1 is measured on while the model is trained; none where `train.tasks` is not set. Raises as
    `open_whole_benchmark`, and UsageError where there are fewer than `train.task_count`."""
    settings = context.project.train
    if settings.tasks is None:
        return ()
    return picked_tasks(open_whole_benchmark(context, settings.tasks).problems, settings.task_count)


def tasks_apart_at_hand(context: RunContext) -> Sequence[Problem] | None:
    """The same without a download; None where the file is not on this machine."""
    settings = context.project.train
    problems = problems_at_hand(context, settings.tasks) if settings.tasks is not None else ()
    return None if problems is None else picked_tasks(problems, settings.task_count)


def open_whole_benchmark(context: RunContext, reference: str) -> Benchmark:
    """Warns of tasks that cannot be run. Raises UsageError for an unknown name, DataError for a file that holds no
    tasks in a known format."""
    file = locate_benchmark(reference, _project_path(context, reference), lambda: _demo_file(context))
    opened = benchmarks.open_benchmark(reference, file, directory_name(context, reference))
    if opened.left_out:
        console.warn_once(_left_out(opened))
    return opened


def open_benchmarks(context: RunContext, reference: str) -> Sequence[Benchmark]:
    """One benchmark, or `all` that are at hand. Raises as `open_benchmark`."""
    references = references_at_hand(context) if reference == benchmarks.ALL else [reference]
    return [open_benchmark(context, each) for each in references]


def part_of_benchmark(benchmark: Benchmark, limit: int | None, task_ids: Sequence[str], after: str) -> Benchmark:
    """The same as `part_of`; warns of tasks without a date, which `after` leaves out."""
    part = part_of(benchmark, limit, task_ids, after)
    undated = sum(not problem.date for problem in benchmark.problems)
    if after and undated:
        console.warn_once(
            f"--after {after}: {benchmark.title}: {quantity(undated, 'task')} of {len(benchmark.problems)} left out, "
            "which have no date"
        )
    return part


def references_at_hand(context: RunContext) -> Sequence[str]:
    """The project's own benchmarks, and every published one whose file is on this machine; the others are named in a
    note. Raises UsageError where there is none."""
    own = [name for name in context.project.evaluate.benchmarks if not spec_named(name) or name == "demo"]
    published = [spec.name for spec in benchmarks.BENCHMARKS if spec.name != "demo"]
    at_hand = [*(name for name in published if _file_at_hand(context, name) is not None), *own]
    if lacking := [name for name in published if name not in at_hand]:
        console.say(
            f"not on this machine, and left out: {', '.join(lacking)}. To fetch one, name it: codetune eval NAME"
        )
    if not at_hand:
        raise UsageError(
            f"{benchmarks.ALL}: no benchmark is on this machine. Expected: the file of one at least. Name one, such as "
            "humaneval, to fetch it"
        )
    return at_hand


def _file_at_hand(context: RunContext, reference: str) -> Path | None:
    return benchmark_at_hand(reference, _project_path(context, reference), lambda: _demo_file(context))


def _left_out(opened: Benchmark) -> str:
    named = "; ".join(f"{task_id} ({why})" for task_id, why in list(opened.left_out.items())[:NAMED_TASKS])
    more = len(opened.left_out) - NAMED_TASKS
    return (
        f"{opened.title}: {quantity(len(opened.left_out), 'task')} of "
        f"{len(opened.left_out) + len(opened.whole)} left out, whose tests are not calls with values: {named}"
        + (f" and {more} more" if more > 0 else "")
    )


def problems_at_hand(context: RunContext, reference: str) -> Sequence[Problem] | None:
    """The tasks of a benchmark whose file is on this machine, without a download; None where it is not. Raises
    DataError for a file that holds no tasks in EvalPlus format."""
    file = _file_at_hand(context, reference)
    return None if file is None else read_problems(file)


def directory_name(context: RunContext, reference: str) -> str:
    """The name of the directory of a benchmark's artefacts; reads no tasks."""
    path = _project_path(context, reference)
    return artefact_name(reference, lambda: context.digests.file(path) if path.is_file() else None)


def distinct_benchmarks(context: RunContext) -> Sequence[str]:
    """The project's benchmarks. Raises UsageError where two of them would write the same artefacts."""
    benchmarks = context.project.evaluate.benchmarks
    names = [directory_name(context, reference) for reference in benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"evaluate.benchmarks names {twice!r} twice ({', '.join(benchmarks)}); results are kept by name. Leave "
            "one out, or rename the file"
        )
    return benchmarks


def is_samples_file(context: RunContext, reference: str) -> bool:
    """Whether a word names a file of samples, not a benchmark: by its first row, for both may hold prompts."""
    if spec_named(reference) or not Path(reference).is_file() or reference in context.project.evaluate.benchmarks:
        return False
    return not is_published(Path(reference)) and holds_samples(Path(reference))


def benchmark_of_samples(context: RunContext, path: Path) -> str:
    """The benchmark that the task ids of a samples file belong to: one of the table, or one of the project's files.

    Raises UsageError where none has the first task."""
    first = read_samples(path)[0].task_id
    name = spec_of(first).name
    if name and _file_at_hand(context, name) is not None:
        return name
    for reference in context.project.evaluate.benchmarks:
        if not spec_named(reference):
            problems = open_whole_benchmark(context, reference).problems
            if any(problem.task_id == first for problem in problems):
                return reference
    if name:
        return name
    raise UsageError(
        f"{path}: the task {first!r} is not in any benchmark of the project; expected humaneval, mbpp or one of "
        "evaluate.benchmarks. Name its file there, such as --set 'evaluate.benchmarks=[tasks.jsonl]'"
    )


def samples_request(context: RunContext, tasks: Benchmark, path: Path) -> StageRequest:
    """For a samples file of the user's; its label is the file's stem with 8 digits of its digest."""
    require_plain_file(path)
    if not path.exists():
        raise DataError(f"There is no file {path}. Expected: a JSONL of samples in EvalPlus format. Fix --samples")
    label = f"{stem_of(path)}-{context.digests.file(path)[:8]}"
    return StageRequest(benchmark=tasks.name, label=label, tasks=tasks, samples=path)


def tasks_input() -> Input:
    """The tasks of the request, by their content."""

    def resolve(context: RunContext, request: StageRequest) -> Resolved:
        assert request.tasks is not None
        return Resolved(request.tasks.digest, request.tasks.file)

    return Input("benchmark", resolve, _changed_tasks)


def tasks_facts(context: RunContext, request: StageRequest) -> dict[str, str]:
    """For the manifest: the file of the tasks and its digest, so that a later change is seen without reading tasks; and
    whether the tasks are a part of the file's."""
    tasks = request.tasks
    assert tasks is not None
    of_file = {"benchmark_file": str(tasks.file), "benchmark_file_digest": context.digests.file(tasks.file)}
    return of_file if len(tasks.problems) == len(tasks.whole) else {**of_file, IS_PART: "yes"}


def samples_input(name: str) -> Input:
    """A samples file of the user's."""

    def resolve(context: RunContext, request: StageRequest) -> Resolved:
        assert request.samples is not None
        return Resolved(context.digests.file(request.samples), request.samples)

    return Input(name, resolve, lambda *_: "")


def _changed_tasks(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
    if request.tasks is not None:
        is_same = request.tasks.digest == sealed.manifest.inputs["benchmark"]
        return "" if is_same else f"{sealed.path} was made for different tasks"
    file = _own_file(context, request.benchmark) or Path(sealed.manifest.facts.get("benchmark_file", ""))
    if file.is_file() and context.digests.file(file) != sealed.manifest.facts["benchmark_file_digest"]:
        return f"the tasks in {file} have changed since"
    apart = tasks_apart_at_hand(context)
    if apart is None or not (apart or IS_PART in sealed.manifest.facts) or not file.is_file():
        return ""  # tasks are read only where some are, or were, left out
    is_same = benchmark_digest(tasks_left(read_problems(file), apart)) == sealed.manifest.inputs["benchmark"]
    return "" if is_same else f"{sealed.path} was made without, or with, tasks that train.tasks keeps apart now"


def _own_file(context: RunContext, name: str) -> Path | None:
    """The user's own file that the artefacts of this name are of; None for a benchmark of the table."""
    own = [reference for reference in context.project.evaluate.benchmarks if not spec_named(reference)]
    return next((_project_path(context, each) for each in own if directory_name(context, each) == name), None)


def _project_path(context: RunContext, reference: str) -> Path:
    """The path of a benchmark that is not in the table: beside the project file, if it is there."""
    return Path(context.project.locate(reference)).expanduser()


def _demo_file(context: RunContext) -> Path:
    """The demo's held-out tasks: those of the demo's directory, else made for this run."""
    beside = context.project.root / "benchmark.jsonl"
    if beside.is_file():
        return beside
    from codetune.demo.demo_project import write_benchmark

    made_here = context.run.directory / ".cache" / "demo.jsonl"
    if not made_here.is_file():
        write_benchmark(made_here, context.project.seed)
    return made_here
