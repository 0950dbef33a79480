"""The verbs of a benchmark, one function each: generate, sanitize, evaluate. Artefacts are kept by benchmark and model;
what a model wrote belongs to the digest of its files, so one replaced at the same path is never mistaken for the old.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune import console
from codetune.errors import DataError, StaleError, UsageError
from codetune.launch.dispatch import Job, perform, process_count
from codetune.launch.environment import current_rank, thread_count, user_cache
from codetune.project.sections import Project
from codetune.records import Completion, Problem, Solution, Verdict
from codetune.stages.generate import COUNTS, Order, completed_rows, order
from codetune.stages.jobs import run_job
from codetune.stages.model_ref import Kind, model_digest, prompt_kind
from codetune.stages.model_ref import ModelRef as ModelRef
from codetune.stages.model_ref import model_ref as model_ref
from codetune.stages.stage import StageOutput, StageResult, already, seal_artefact
from codetune.stages.status import Recipe, RunContext, differing_settings, settings_of
from codetune.store.block_log import LineLog, open_parts
from codetune.store.files import remove, write_lines, write_text
from codetune.store.locks import locked
from codetune.store.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark, or a part of one, and its tasks; `name` is the directory of its artefacts."""

    name: str
    said: str  # as the user says it
    file: Path
    digest: str
    problems: Sequence[Problem]
    whole: Sequence[Problem]  # all tasks, where `problems` is a part
    title: str  # the name of the whole
    complete: bool  # samples must be there for every task of it


def open_bench(context: RunContext, said: str) -> Bench:
    from codetune.benchmark.benchmarks import locate_benchmark, open_benchmark

    file = locate_benchmark(said, _project_path(context, said), lambda: _demo_file(context))
    found = open_benchmark(said, file, bench_name(context, said))
    return Bench(found.name, said, found.file, found.digest, found.problems, found.whole, found.title, complete=False)


def part_of(bench: Bench, limit: int | None, tasks: Sequence[str], complete: bool) -> Bench:
    """The first `limit` of the tasks named, or of all; with artefacts of its own, so that those of the whole stay."""
    from codetune.benchmark.benchmarks import benchmark_digest, pick_problems

    picked = pick_problems(bench.problems, tasks)[:limit]
    if len(picked) == len(bench.problems):
        return replace(bench, complete=complete)
    digest = benchmark_digest(picked)
    return replace(bench, name=f"{bench.name}-{digest[:8]}", digest=digest, problems=picked, complete=complete)


def bench_name(context: RunContext, said: str) -> str:
    """The directory name of a benchmark's artefacts."""
    from codetune.benchmark.benchmarks import artefact_name

    path = _project_path(context, said)
    return artefact_name(said, lambda: context.digests.file(path) if path.is_file() else None)


def generate(context: RunContext, bench: Bench, model: ModelRef) -> StageResult:
    """What the model writes for every task -> completions/<benchmark>/<label>.jsonl."""
    if model.kind is None:
        raise UsageError(
            f"{model.name} can be prompted as a chat or as a raw text, and nothing says which (base models can have a "
            "chat template too). Say --instruct or --base, or set generate.prompt"
        )
    recipe = _completions(context, bench, model)
    with locked(context.run, f"generate-{bench.name}-{model.label}", None):
        began = time.monotonic()
        if done := already(context, recipe, began):
            return done
        parts = context.run.parts(recipe.artefact)
        if open_parts(parts, recipe.identity(), refuse_others=False):
            console.note(f"generate: model or settings have changed since {parts} was begun; it starts anew")
        numbers = range(context.project.generate.samples_per_task)
        work = [(problem.task_id, number) for problem in bench.problems for number in numbers]
        rows = completed_rows(parts)
        reused = len(rows)
        with console.progress(f"generate {bench.name} {model.label}", len(work), "sample", reused) as bar:
            missing = [item for item in work if item not in rows]
            _perform(context, order(model, (bench.said, bench.file), missing, parts), bar)
        rows = completed_rows(parts)
        written = [rows[item] for item in work]
        write_lines(recipe.artefact, (json.dumps(_without_counts(row)) for row in written))
        facts = {name: sum(row[name] for row in written) for name in ("tokens", "truncated")}
        result = seal_artefact(context, recipe, StageOutput(len(written), {}, facts), reused, began)
        remove(parts)
        return result


def sanitize(context: RunContext, bench: Bench, model: ModelRef) -> StageResult:
    """Completions -> programs that can be run, in solutions/<benchmark>/<label>.jsonl."""
    completions = _completions(context, bench, model)
    _require_made(context, completions, f"codetune generate {bench.said}{_option(model)}")
    return _sanitize(context, bench, model.label, completions.artefact)


def sanitize_file(context: RunContext, path: Path) -> StageResult:
    """A samples file of anybody's, for the benchmark that its task ids tell."""
    from codetune.benchmark.evalplus_format import read_samples

    samples = read_samples(path)
    return _sanitize(
        context, open_bench(context, _benchmark_of(context, path, samples)), _file_label(context, path), path
    )


def is_samples_file(context: RunContext, said: str) -> bool:
    """Whether a word names a file of samples, not a benchmark: by its first row, for both may hold prompts."""
    from codetune.benchmark.benchmarks import spec_named
    from codetune.benchmark.evalplus_format import holds_samples

    if spec_named(said) or not Path(said).is_file() or said in context.project.evaluate.benchmarks:
        return False
    return holds_samples(Path(said))


def evaluate(context: RunContext, bench: Bench, model: ModelRef, part: Bench) -> Report:
    """Solutions -> verdicts and pass@k, in evaluation/<benchmark>/<label>.json. Made for all tasks of `bench`, they are
    judged on those of `part`."""
    completions = _completions(context, bench, model)
    _require_made(context, completions, f"codetune generate {bench.said}{_option(model)}")
    solutions = _solutions(context, bench, model.label, completions.artefact)
    _require_made(context, solutions, f"codetune sanitize {bench.said}{_option(model)}")
    return _evaluate(context, part, model.label, solutions.artefact)


def changed_since(context: RunContext, label: str, paths: Sequence[Path], manifests: Sequence[Manifest | None]) -> str:
    """What has changed since `base` or `tuned` was evaluated, as a sentence; "" where nothing has, as far as files on
    this machine tell. `paths` and `manifests` are of the completions, the solutions and the evaluation."""
    directory = (
        context.run.model if label == "tuned" else Path(context.project.locate(context.project.model.path)).expanduser()
    )
    for path, manifest, stage in zip(paths, manifests, ("generate", "sanitize", "evaluate"), strict=True):
        if manifest is None:
            return f"{path} is not there any more"
        if context.digests.file(path) != manifest.digest:
            return f"{path} was changed after codetune wrote it"
        if changed := differing_settings(path, manifest, _benchmark_settings(context, stage, label)):
            return changed
    completions, solutions, evaluation = (manifest for manifest in manifests if manifest is not None)
    if directory.is_dir() and completions.inputs["model"] != model_digest(context, directory):
        return f"the {label} model has changed since"
    if (solutions.inputs["completions"], evaluation.inputs["solutions"]) != (completions.digest, solutions.digest):
        return "its completions have changed since"
    tasks = Path(evaluation.facts.get("benchmark_file", ""))
    if tasks.is_file() and context.digests.file(tasks) != evaluation.facts["benchmark_file_digest"]:
        return f"the tasks in {tasks} have changed since"
    return ""


def evaluate_file(context: RunContext, bench: Bench, path: Path) -> Report:
    """A samples file of anybody's, judged as it is."""
    if not path.is_file():
        raise DataError(f"There is no file {path}. Expected: a JSONL of samples in EvalPlus format. Mend --samples")
    return _evaluate(context, bench, _file_label(context, path), path)


def _perform(context: RunContext, ordered: Order, bar: console.ProgressBar) -> None:
    """In one process for each GPU, or as many as the project says; in those of other machines only where a launcher has
    started them. They hold one model together where a GPU does not hold it. vLLM spreads over GPUs by itself."""
    if not ordered.missing:
        return
    launch = context.project.launch.model_copy(update={"nodes": 1})
    project = context.project.model_copy(update={"launch": launch})
    vllm = project.generate.backend == "vllm"
    processes = 1 if vllm else process_count(project)
    if not vllm and _must_share(project, Path(ordered.model["directory"]), processes):
        ordered = replace(ordered, together=True)
    job = Job("generate", project, asdict(ordered))
    perform(job, processes, lambda rank, message: bar.advance(1, int(message["tokens"] or 0)), run_job)


def _must_share(project: Project, model: Path, processes: int) -> bool:
    from codetune.model.tensor_parallel import ProcessCounts, needs_tensor_parallel, visible_gpus

    here = current_rank()
    launched = here.world_size > 1
    crowd = ProcessCounts(here.world_size if launched else processes, here.local_world_size if launched else processes)
    return needs_tensor_parallel(model, project.model.dtype, crowd, visible_gpus())


def _without_counts(row: Mapping[str, Any]) -> dict[str, Any]:
    """As EvalPlus has it: a task's samples are counted in the order in which they stand."""
    return {name: value for name, value in row.items() if name not in COUNTS}


def _sanitize(context: RunContext, bench: Bench, label: str, source: Path) -> StageResult:
    from codetune.benchmark.evalplus_format import pair_with_problems, read_samples
    from codetune.benchmark.sanitize import sanitize

    recipe = _solutions(context, bench, label, source)
    with locked(context.run, f"sanitize-{bench.name}-{label}", None):
        began = time.monotonic()
        if done := already(context, recipe, began):
            return done
        pairs = pair_with_problems(bench.problems, read_samples(source))
        cleaned = [
            sanitize(problem, sample)
            for problem, sample in console.track(pairs, f"sanitize {bench.name} {label}", len(pairs), "sample")
        ]
        write_lines(recipe.artefact, (json.dumps(_sample_row(clean.solution)) for clean in cleaned))
        facts = {
            "changed": sum(clean.changed for clean in cleaned),
            "not_parsing": sum(not clean.parses for clean in cleaned),
        }
        return seal_artefact(context, recipe, StageOutput(len(cleaned), {}, facts), 0, began)


def _evaluate(context: RunContext, bench: Bench, label: str, source: Path) -> Report:
    from codetune.benchmark.evalplus_format import as_solution
    from codetune.benchmark.evaluate import evaluate
    from codetune.sandbox.probe import choose_tier

    recipe, settings = _evaluation(context, bench, label, source), context.project.evaluate
    with locked(context.run, f"evaluate-{bench.name}-{label}", None):
        began = time.monotonic()
        samples = _samples(bench, source, settings.k)
        if _made(context, recipe):
            report: Report = json.loads(recipe.artefact.read_text(encoding="utf-8"))
            return report
        tier = choose_tier(settings.sandbox)
        if tier == "none":
            console.warn_once(
                "generated programs run without a sandbox, as evaluate.sandbox says: they can read and change your "
                "files and reach the network"
            )
        tasks = {problem.task_id: problem for problem in bench.problems}
        solutions = [as_solution(tasks[sample.task_id], sample) for sample in samples]
        verdicts = _verdicts(context, recipe, bench, solutions, tier)
        report = evaluate(bench.title, label, tier, bench.whole, verdicts, settings.k, context.project.seed)
        write_text(recipe.artefact, json.dumps(report, indent=2) + "\n")
        tasks_file = {"benchmark_file": str(bench.file), "benchmark_file_digest": context.digests.file(bench.file)}
        seal_artefact(context, recipe, StageOutput(len(samples), {}, tasks_file), 0, began)
        remove(context.run.parts(recipe.artefact))
        return report


def _samples(bench: Bench, source: Path, k: Sequence[int]) -> list[Completion | Solution]:
    """Those for the benchmark's tasks; what makes figures impossible, or is missing, is said before anything runs."""
    from codetune.benchmark.evalplus_format import read_samples
    from codetune.benchmark.evaluate import check_samples

    tasks = {problem.task_id for problem in bench.problems}
    others = {problem.task_id for problem in bench.whole} - tasks
    samples = [sample for sample in read_samples(source) if sample.task_id not in others]
    check_samples(bench.problems, samples, k)
    there = {sample.task_id for sample in samples}
    missing = [problem.task_id for problem in bench.problems if problem.task_id not in there]
    if missing:
        found = f"{source} has samples for {len(tasks) - len(missing)} of the {len(tasks)} tasks of {bench.name}"
        if bench.complete:
            raise DataError(
                f"{found}: {missing[0]} is the first without. Expected: one for every task, as --complete says. Make "
                "the others, or leave --complete out"
            )
        console.warn(f"{found}: the figures are of that part only")
    return samples


def _verdicts(
    context: RunContext, recipe: Recipe, bench: Bench, solutions: Sequence[Solution], tier: str
) -> list[Verdict]:
    """Every verdict: those found from an interrupted run, and the others as they are judged."""
    from codetune.benchmark.judge import JUDGE_BROKE, count_missing, judge, prepare

    parts, expected, workers = context.run.parts(recipe.artefact), user_cache() / "expected", thread_count()
    open_parts(parts, recipe.identity(), refuse_others=False)
    with LineLog(parts / "verdicts.jsonl") as log:
        verdicts = {(row["task_id"], row["sample"]): Verdict(**row) for row in log.found}
        missing = [solution for solution in solutions if (solution.task_id, solution.sample) not in verdicts]
        wanted = {solution.task_id for solution in missing}
        problems = [problem for problem in bench.problems if problem.task_id in wanted]
        if unknown := count_missing(problems, expected):
            with console.progress(f"expected outputs of {bench.name}", unknown, "task", 0) as bar:
                for _ in prepare(problems, expected, workers, tier):
                    bar.advance(1)
        label = f"evaluate {bench.name} {recipe.artefact.stem}"
        with console.progress(label, len(solutions), "sample", len(verdicts)) as bar:
            for verdict in judge(problems, missing, expected, workers, tier):
                log.append(asdict(verdict))
                if verdict.failure.startswith(JUDGE_BROKE):
                    console.warn(
                        f"sample {verdict.sample} of {verdict.task_id} counts as failed: {verdict.failure}, and "
                        "not for the task's own solution. Look at that sample, and please report it"
                    )
                verdicts[(verdict.task_id, verdict.sample)] = verdict
                bar.advance(1)
    return list(verdicts.values())


def _completions(context: RunContext, bench: Bench, model: ModelRef) -> Recipe:
    inputs = {"benchmark": bench.digest, "model": model.digest}
    recipe = Recipe.of(context, "generate", context.run.completions(bench.name, model.label), inputs)
    return replace(recipe, settings=_with_prompt(recipe.settings, model.kind))


def _benchmark_settings(context: RunContext, stage: str, label: str) -> Mapping[str, Any]:
    settings = settings_of(context.project, stage)
    return _with_prompt(settings, prompt_kind(context, label, context.run.model)) if stage == "generate" else settings


def _with_prompt(settings: Mapping[str, Any], kind: Kind | None) -> dict[str, Any]:
    """The settings with the kind of prompt in the place of `auto`."""
    others = {key: value for key, value in settings.items() if key != "generate.prompt"}
    return {**others, "generate.prompt": kind} if kind else others


def _solutions(context: RunContext, bench: Bench, label: str, source: Path) -> Recipe:
    inputs = {"benchmark": bench.digest, "completions": context.digests.file(source)}
    return Recipe.of(context, "sanitize", context.run.solutions(bench.name, label), inputs)


def _evaluation(context: RunContext, bench: Bench, label: str, source: Path) -> Recipe:
    inputs = {"benchmark": bench.digest, "solutions": context.digests.file(source)}
    return Recipe.of(context, "evaluate", context.run.evaluation(bench.name, label), inputs)


def _made(context: RunContext, recipe: Recipe) -> bool:
    return already(context, recipe, 0.0) is not None


def _require_made(context: RunContext, recipe: Recipe, command: str) -> None:
    """Of what an earlier verb has left: a setting that came by flag then makes nothing stale now."""
    manifest = read_manifest(recipe.artefact)
    if manifest is None:
        raise StaleError(f"{recipe.artefact} does not exist; another command makes it. Run: {command}")
    changed = differing_settings(recipe.artefact, manifest, recipe.settings)
    if not changed and dict(manifest.inputs) != dict(recipe.inputs):
        changed = f"{recipe.artefact} was made by another model or for other tasks than those that are there now"
    if not changed and context.digests.file(recipe.artefact) != manifest.digest:
        changed = f"{recipe.artefact} was changed after codetune wrote it"
    if changed:
        raise StaleError(f"{changed}. Run: {command}")


def _sample_row(sample: Completion | Solution) -> dict[str, Any]:
    from codetune.benchmark.evalplus_format import sample_row

    return sample_row(sample)


def _option(model: ModelRef) -> str:
    return "" if model.name == "tuned" else f" --model {model.name}"


def _file_label(context: RunContext, path: Path) -> str:
    return f"{_stem(path)}-{context.digests.file(path)[:8]}"


def _stem(path: Path) -> str:
    """Without endings; of a hidden file, too."""
    return path.name.lstrip(".").partition(".")[0]


def _benchmark_of(context: RunContext, path: Path, samples: Sequence[Completion | Solution]) -> str:
    """By the task ids HumanEval, MBPP or the demo; else what of the project's benchmarks knows the first task."""
    from codetune.benchmark.benchmarks import spec_named, spec_of

    first = samples[0].task_id
    if name := spec_of(first).name:
        return name
    for said in context.project.evaluate.benchmarks:
        if not spec_named(said) and any(problem.task_id == first for problem in open_bench(context, said).problems):
            return said
    raise UsageError(
        f"{path}: the task {first!r} is of no benchmark that the project names; expected humaneval, mbpp or one of "
        "evaluate.benchmarks. Name its file there, such as --set 'evaluate.benchmarks=[tasks.jsonl]'"
    )


def _project_path(context: RunContext, said: str) -> Path:
    """A benchmark that is no name but a path, beside the project file if it is there."""
    return Path(context.project.locate(said)).expanduser()


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
