"""evaluate: solutions -> verdicts and pass@k, in `evaluation/<benchmark>/<label>.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from codetune import console
from codetune.benchmark.benchmarks import Benchmark, runnable
from codetune.benchmark.evalplus_format import read_samples
from codetune.errors import DataError
from codetune.launch.environment import thread_count
from codetune.project.sections import Project
from codetune.records import Completion, Solution, Verdict
from codetune.stages.benchmarks import samples_input, tasks_facts, tasks_input
from codetune.stages.generate import GENERATE
from codetune.stages.model_card import update_card
from codetune.stages.sandbox import expected_outputs, prepare_expected, working_tier
from codetune.stages.sanitize import SANITIZE
from codetune.stages.stage import Input, Recipe, Resolved, RunContext, Stage, StageOutput, StageRequest
from codetune.stages.status import require
from codetune.store.block_log import LineLog, open_parts, read_objects
from codetune.store.files import write_text
from codetune.store.manifest import read_manifest
from codetune.store.run_directory import Run

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report


def read_report(path: Path) -> Report:
    """The `--json` document of an evaluation."""
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    return report


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    solutions = samples_input("solutions") if request.samples else _solutions_input()
    return tasks_input(), solutions


def _solutions_input() -> Input:
    """The solutions of the model; of the whole benchmark, where a part of it is judged."""

    def resolve(context: RunContext, request: StageRequest) -> Resolved:
        of_whole = _whole_request(request)
        require(context, GENERATE, of_whole)
        return Resolved(require(context, SANITIZE, of_whole).digest, SANITIZE.artefact(context.run, of_whole))

    return Input("solutions", resolve, lambda *_: "", upstream=SANITIZE)


def _whole_request(request: StageRequest) -> StageRequest:
    if request.whole is None:
        return request
    return StageRequest(benchmark=request.whole.name, label=request.label, tasks=request.whole, model=request.model)


def _check(context: RunContext, request: StageRequest) -> None:
    """Raises InputError for a samples file that allows no figures, before anything runs."""
    if request.tasks is not None and request.samples is not None:
        _samples(request.tasks, request.samples, context.project.evaluate.k, request.complete)


def _check_ahead(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    """Raises CodetuneError where no sandbox tier works, InputError where expected outputs cannot be kept."""
    working_tier(context.project.evaluate.sandbox)
    expected_outputs()


def _prepare(context: RunContext, recipe: Recipe, request: StageRequest) -> None:
    open_parts(context.run.parts(recipe.artefact), recipe.identity(), refuse_others=False)


def _work(context: RunContext, recipe: Recipe, request: StageRequest) -> int:
    """Judges what has no verdict yet."""
    solutions = _solutions(context, recipe, request)
    with LineLog(_verdict_log(context.run, recipe.artefact)) as log:
        found = {(row["task_id"], row["sample"]) for row in log.found}
        missing = [solution for solution in solutions if (solution.task_id, solution.sample) not in found]
        if missing:
            _judge(context, request, missing, len(solutions), log)
    return len(solutions) - len(missing)


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    from codetune.benchmark.evaluate import evaluate

    assert request.tasks is not None
    settings, tasks = context.project.evaluate, request.tasks
    verdicts = [Verdict(**row) for row in read_objects(_verdict_log(context.run, recipe.artefact))]
    report = evaluate(
        tasks.title,
        request.label,
        working_tier(settings.sandbox),
        tasks.whole,
        verdicts,
        settings.k,
        context.project.seed,
    )
    if tasks.left_out:
        report["left_out"] = dict(tasks.left_out)
    write_text(recipe.artefact, json.dumps(report, indent=2) + "\n")
    return StageOutput(report["samples"])


def _solutions(context: RunContext, recipe: Recipe, request: StageRequest) -> list[Solution]:
    assert request.tasks is not None
    tasks = {problem.task_id: problem for problem in request.tasks.problems}
    samples = _samples(request.tasks, recipe.paths["solutions"], context.project.evaluate.k, request.complete)
    return [runnable(tasks[sample.task_id], sample) for sample in samples]


def _samples(tasks: Benchmark, source: Path, k: Sequence[int], complete: bool) -> list[Completion | Solution]:
    """The samples for the tasks. Raises InputError where they allow no figures, and with `complete` for a task without
    a sample; else warns of it."""
    from codetune.benchmark.evaluate import check_samples

    ids = {problem.task_id for problem in tasks.problems}
    samples = tasks.without_others(read_samples(source))
    check_samples(tasks.problems, samples, k)
    there = {sample.task_id for sample in samples}
    missing = [problem.task_id for problem in tasks.problems if problem.task_id not in there]
    if missing:
        found = f"{source} has samples for {len(ids) - len(missing)} of the {len(ids)} tasks of {tasks.name}"
        if complete:
            raise DataError(
                f"{found}: {missing[0]} is the first without. Expected: one for every task, as --complete says. Make "
                "the others, or leave --complete out"
            )
        console.warn_once(f"{found}: the figures are of that part only")
    return samples


def _judge(context: RunContext, request: StageRequest, missing: Sequence[Solution], total: int, log: LineLog) -> None:
    """Each verdict into the log as it comes."""
    from codetune.benchmark.judge import JUDGE_BROKE, judge

    assert request.tasks is not None
    tier = working_tier(context.project.evaluate.sandbox)
    wanted = {solution.task_id for solution in missing}
    problems = [problem for problem in request.tasks.problems if problem.task_id in wanted]
    expected = prepare_expected(request.benchmark, problems, tier)
    label = f"evaluate {request.benchmark} {request.label}"
    with console.progress(label, total, "sample", total - len(missing)) as bar:
        for verdict in judge(problems, missing, expected, thread_count(), tier):
            log.append(asdict(verdict))
            if verdict.failure.startswith(JUDGE_BROKE):
                console.warn(
                    f"sample {verdict.sample} of {verdict.task_id} counts as failed: {verdict.failure}, and not for "
                    "the task's own solution. Look at that sample, and please report it"
                )
            bar.advance(1)


def _verdict_log(run: Run, artefact: Path) -> Path:
    return run.parts(artefact) / "verdicts.jsonl"


def _progress(context: RunContext, request: StageRequest) -> str | None:
    log = _verdict_log(context.run, context.run.evaluation(request.benchmark, request.label))
    if not log.exists():
        return None
    solutions = read_manifest(context.run.solutions(request.benchmark, request.label))
    total = f" of {solutions.rows:,}" if solutions else ""
    return f"{len(log.read_bytes().splitlines()):,}{total} verdicts"


def _has_saved(context: RunContext, request: StageRequest) -> bool:
    log = _verdict_log(context.run, context.run.evaluation(request.benchmark, request.label))
    return log.exists() and b"\n" in log.read_bytes()


EVALUATE = Stage(
    "evaluate",
    _inputs,
    lambda run, request: run.evaluation(request.benchmark, request.label),
    _write,
    of_benchmark=True,
    check=_check,
    check_ahead=_check_ahead,
    prepare=_prepare,
    work=_work,
    progress=_progress,
    has_saved=_has_saved,
    afterwards=update_card,
    rules=2,  # since empty and stretched outputs match nothing, and a tolerance holds for one output alone
    is_taken_over=True,
    facts=tasks_facts,
)
