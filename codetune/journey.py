"""The verbs over several stages: run (the whole pipeline), eval (a benchmark in one go), status (how all of it stands).
What is done and still true is not done again.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

from codetune import benchmarking, pipeline
from codetune.console import counts, percent
from codetune.errors import StaleError, UsageError
from codetune.parts import read_logs
from codetune.pipeline import StageResult
from codetune.selection.select import NEEDS
from codetune.stages import Desk, RowStage, State, dataset_is_here, standing
from codetune.store import Seal, read_seal
from codetune.unfinished import training_place

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report

Stage = Literal["score", "embed", "select", "train", "generate", "sanitize", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ROW_STAGES: tuple[RowStage, ...] = get_args(RowStage)
COMPARED = ("base", "tuned")


@dataclass(frozen=True, slots=True)
class Line:
    """How one stage stands; `detail` says why it is stale, how far it is, or what is in it."""

    stage: str
    state: State | Literal["not needed"]
    detail: str
    command: str


def run(desk: Desk, first: Stage, last: Stage) -> Iterator[StageResult | Report]:
    """Every stage from `first` to `last`, each yielded when it is done."""
    wanted = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not wanted:
        raise UsageError(f"--from {first} --to {last}: {last} comes before {first}. The order is: {' '.join(STAGES)}")
    for stage in ROW_STAGES:
        if stage in wanted and needed(desk, stage):
            yield _row_stage(desk, stage)
    if not {"generate", "sanitize", "evaluate"} & set(wanted):
        return
    benches = [benchmarking.open_bench(desk, said) for said in _distinct(desk)]
    models = [benchmarking.contestant(desk, name) for name in COMPARED]
    for bench in benches:
        for model in models:
            if "generate" in wanted:
                yield benchmarking.generate(desk, bench, model)
            if "sanitize" in wanted:
                yield benchmarking.sanitize(desk, bench, model)
            if "evaluate" in wanted:
                yield benchmarking.evaluate(desk, bench, model)


def evaluate_by_name(desk: Desk, said: str, names: Sequence[str]) -> list[Report]:
    """Generate, sanitize and evaluate each model on one benchmark. All names are resolved before the first is run."""
    bench = benchmarking.open_bench(desk, said)
    models = [benchmarking.contestant(desk, name) for name in names]
    reports = []
    for model in models:
        benchmarking.generate(desk, bench, model)
        benchmarking.sanitize(desk, bench, model)
        reports.append(benchmarking.evaluate(desk, bench, model))
    return reports


def compare(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Exact McNemar between every two models that have one sample a task, on the tasks that both have."""
    from codetune.benchmark.statistics import mcnemar

    compared: list[dict[str, Any]] = []
    for first, second in combinations(reports, 2):
        tasks = [task for task in first["verdicts"] if task in second["verdicts"]]
        if first["benchmark"] != second["benchmark"] or not tasks:
            continue
        if any(len(report["verdicts"][task]) > 1 for report in (first, second) for task in tasks):
            continue
        entry: dict[str, Any] = {
            "benchmark": first["benchmark"],
            "models": [first["model"], second["model"]],
            "tasks": len(tasks),
        }
        for suite in ("base", "plus"):
            passes = [[report["verdicts"][task][0][suite] == "pass" for task in tasks] for report in (first, second)]
            found = mcnemar(*passes)
            entry[suite] = {
                "only_first": found.only_first,
                "only_second": found.only_second,
                "p_value": found.p_value,
            }
        compared.append(entry)
    return compared


def needed(desk: Desk, stage: RowStage) -> bool:
    """Whether the selection strategy makes any use of the stage."""
    needs = NEEDS[desk.project.select.strategy]
    return {"score": needs.scores, "embed": needs.embeddings}.get(stage, True)


def status(desk: Desk) -> list[Line]:
    """A line per stage, in their order; looks at files only."""
    lines = [_row_line(desk, stage) for stage in ROW_STAGES]
    trained = lines[-1].state == "done"
    benchmarks = desk.project.evaluate.benchmarks
    return lines + [_benchmark_line(desk, said, label, trained) for said in benchmarks for label in COMPARED]


def _distinct(desk: Desk) -> Sequence[str]:
    """The project's benchmarks, where no two of them would write the same artefacts."""
    benchmarks = desk.project.evaluate.benchmarks
    names = [benchmarking.bench_name(desk, said) for said in benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"evaluate.benchmarks names {twice!r} twice ({', '.join(benchmarks)}); results are kept by name. Leave "
            "one out, or rename the file"
        )
    return benchmarks


def _row_stage(desk: Desk, stage: RowStage) -> StageResult:
    found = standing(desk, stage)
    if found.state == "done" and found.seal is not None:
        return pipeline.found_done(desk, stage, found.seal)
    if stage == "score":
        return pipeline.score(desk, None)
    if stage == "embed":
        return pipeline.embed(desk, None)
    return pipeline.select(desk) if stage == "select" else pipeline.train(desk)


def _row_line(desk: Desk, stage: RowStage) -> Line:
    if not needed(desk, stage):
        return Line(stage, "not needed", f"select.strategy is {desk.project.select.strategy}", "")
    found = standing(desk, stage)
    command = f"codetune {stage}"
    if found.seal is not None and found.state == "done":
        unseen = "" if _can_compare(desk, found.seal) else f"; {desk.project.dataset.path} is not here to compare with"
        return Line(stage, "done", _counted(found.seal.rows, found.seal.refused) + unseen, command)
    if found.state == "partial":
        return Line(stage, "partial", _progress(desk, stage), command)
    return Line(stage, found.state, found.why, command)


def _can_compare(desk: Desk, seal: Seal) -> bool:
    return "dataset" not in seal.inputs or dataset_is_here(desk)


def _progress(desk: Desk, stage: RowStage) -> str:
    if stage == "train":
        checkpoints = [int(path.name.rpartition("-")[2]) for path in training_place(desk.run).glob("checkpoint-*[0-9]")]
        return f"checkpoint of step {max(checkpoints)}" if checkpoints else "no checkpoint yet"
    return f"{len(read_logs(desk.run.parts(desk.artefact(stage)))):,} rows"


def _benchmark_line(desk: Desk, said: str, label: str, trained: bool) -> Line:
    """By the seals alone: nobody's tasks are read, and no network or hub is asked."""
    name = benchmarking.bench_name(desk, said)
    stage, command = f"{name} {label}", f"codetune eval {said} --model {label}"
    paths = [place(name, label) for place in (desk.run.completions, desk.run.solutions, desk.run.evaluation)]
    try:
        seals = [read_seal(path) for path in paths]
    except StaleError as why:
        return Line(stage, "stale", str(why), command)
    if seals[2] is None:
        done = "generated" if seals[0] else "begun" if desk.run.parts(paths[0]).exists() else ""
        return Line(stage, "partial" if done else "missing", done, command)
    changed = "" if trained or label != "tuned" else "the tuned model has changed since"
    changed = changed or benchmarking.changed_since(desk, label, paths, seals)
    return Line(stage, "stale" if changed else "done", changed or _figures(desk, name, label), command)


def _figures(desk: Desk, name: str, label: str) -> str:
    report = json.loads(desk.run.evaluation(name, label).read_text(encoding="utf-8"))
    figures = report["pass_at_k"]
    return "; ".join(
        f"{k} {percent(figures['base'][k])} base, {percent(figures['plus'][k])} plus" for k in figures["base"]
    )


def _counted(rows: int, refused: Mapping[str, int]) -> str:
    return f"{rows:,} rows" + (f"; refused: {counts(refused)}" if refused else "")


def stage_named(name: str) -> Stage:
    for stage in STAGES:
        if stage == name:
            return stage
    near = difflib.get_close_matches(name, STAGES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UsageError(f"{name} is no stage{hint} Expected one of: {', '.join(STAGES)}")


def reports_in(results: Sequence[StageResult | Report]) -> list[Report]:
    return [result for result in results if not isinstance(result, StageResult)]
