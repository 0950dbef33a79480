"""The table of benchmarks, one record each, and a name or a path -> the benchmark with its tasks.

A benchmark that is not in the table is a file in EvalPlus' format, or in one of `published_tasks.py`. A task follows
the record whose prefix its id has, so that a copy or a subset is treated like the original. To add a benchmark, add a
record and its test.

`evalplus.data` is imported inside the functions that need it: it loads pandas and datasets, which take seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

from codetune.benchmark.evalplus_format import CallInputs, as_solution, read_tasks
from codetune.benchmark.output_match import (
    AS_ASSERTED,
    AS_ASSERTED_CLOSE,
    AS_EVALPLUS,
    HUMANEVAL_RULES,
    MBPP_RULES,
    OutputRule,
)
from codetune.benchmark.published_tasks import (
    leetcode_instruction,
    prediction_instruction,
    prediction_program,
    pro_instruction,
    read_published,
)
from codetune.errors import DataError, UsageError
from codetune.records import Completion, Problem, Solution
from codetune.user_files import require_plain_file

HOLDOUT = "holdout"  # the name of the held-out rows where a command expects a benchmark
FENCE = "```python\n"
ALL = "all"  # where a command expects a benchmark: every one that is at hand
# Where the continuation of a raw prompt leaves the function, as EvalPlus cuts base models (evalplus 0.3.1, codegen).
STOPS = ("\nif __name__", "\ndef main(", "\nprint(", "\nassert")
STOPS_IN_FUNCTION = ("\ndef ", "\nclass ", "\nimport ", "\nfrom ")  # the prompt has begun the function (HumanEval)
LATER_FIELDS = ("stated", "is_close", "statements", "prelude", "callee", "date")  # of a problem, since digests are kept
STOPS_AFTER_DESCRIPTION = ('\n"""',)  # the function is still to come (MBPP)


@dataclass(frozen=True, slots=True)
class EvalPlusDownload:
    """A file that EvalPlus publishes: the environment variable by which EvalPlus reads another file instead, and the
    name of the data set and the version that evalplus 0.3.1 asks for."""

    variable: str
    dataset: str
    version: str


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a data set on the Hugging Face Hub, by a pattern, and the environment variable that names another file
    to be read instead."""

    variable: str
    repository: str
    pattern: str


@dataclass(frozen=True, slots=True)
class DemoFile:
    """The held-out tasks of the demo, which the caller finds or writes."""


def stop_strings(problem: Problem) -> tuple[str, ...]:
    """The strings that end the continuation of a raw prompt: one set for a prompt that begins the function, another for
    one that only describes it. A user's tasks may have both kinds."""
    begun = f"def {problem.entry_point}(" in problem.prompt
    return STOPS + (STOPS_IN_FUNCTION if begun else STOPS_AFTER_DESCRIPTION)


def instruction(problem: Problem) -> str:
    """The user turn for an instruct model."""
    return (
        f"Write the Python function `{problem.entry_point}` that solves the task below. Answer with one Markdown code "
        f"block that holds the whole function and the imports it needs.\n\n{FENCE}{problem.prompt.strip()}\n```"
    )


def _unchanged(_: str, inputs: CallInputs) -> CallInputs:
    return inputs


def _mbpp_inputs(task_id: str, inputs: CallInputs) -> CallInputs:
    """Tuples, sets and complex numbers where the task has them: JSON has none of them."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs

    rebuilt: CallInputs = mbpp_deserialize_inputs(task_id, inputs)
    return rebuilt


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """Everything in which benchmarks differ. All programs are called alike: `entry_point(*arguments)`."""

    name: str  # as users say it
    task_prefix: str  # the ids of its tasks begin with it, those of no other benchmark do
    source: EvalPlusDownload | HubFile | DemoFile | None  # where its file comes from; None: the user names the file
    output_rules: Mapping[str, OutputRule] = field(default_factory=dict)  # entry point -> rule
    other_outputs: OutputRule = AS_EVALPLUS  # the rule of all other functions
    rebuild_inputs: Callable[[str, CallInputs], CallInputs] = _unchanged  # task id and inputs as JSON has them
    stop_strings: Callable[[Problem], tuple[str, ...]] = stop_strings  # for a base model's continuation
    instruction: Callable[[Problem], str] = instruction  # for an instruct model
    # A sample -> its program, where that is not cut by EvalPlus (`sanitize.py`).
    extract: Callable[[Problem, Completion | Solution], str] | None = None


BENCHMARKS: tuple[BenchmarkSpec, ...] = (
    BenchmarkSpec(
        name="humaneval",
        task_prefix="HumanEval/",
        source=EvalPlusDownload("HUMANEVAL_OVERRIDE_PATH", "HumanEvalPlus", "v0.1.10"),
        output_rules=HUMANEVAL_RULES,
    ),
    BenchmarkSpec(
        name="mbpp",
        task_prefix="Mbpp/",
        source=EvalPlusDownload("MBPP_OVERRIDE_PATH", "MbppPlus", "v0.2.0"),
        output_rules=MBPP_RULES,
        rebuild_inputs=_mbpp_inputs,
    ),
    BenchmarkSpec(
        name="humaneval_pro",
        task_prefix="HumanEvalPro/",
        source=HubFile("HUMANEVAL_PRO_OVERRIDE_PATH", "CodeEval-Pro/humaneval-pro", "data/train-*.parquet"),
        other_outputs=AS_ASSERTED,
        stop_strings=lambda _: STOPS,
        instruction=pro_instruction,
    ),
    BenchmarkSpec(
        name="mbpp_pro",
        task_prefix="MbppPro/",
        source=HubFile("MBPP_PRO_OVERRIDE_PATH", "CodeEval-Pro/mbpp-pro", "data/train-*.parquet"),
        other_outputs=AS_ASSERTED,
        stop_strings=lambda _: STOPS,
        instruction=pro_instruction,
    ),
    BenchmarkSpec(
        name="cruxeval",
        task_prefix="CRUXEval/",
        source=HubFile("CRUXEVAL_OVERRIDE_PATH", "cruxeval-org/cruxeval", "test.jsonl"),
        other_outputs=AS_ASSERTED,
        stop_strings=lambda _: ("\n",),
        instruction=prediction_instruction,
        extract=prediction_program,
    ),
    BenchmarkSpec(
        name="leetcode",
        task_prefix="LeetCode/",
        source=HubFile("LEETCODE_OVERRIDE_PATH", "newfacade/LeetCodeDataset", "LeetCodeDataset-test.jsonl"),
        other_outputs=AS_ASSERTED,
        instruction=leetcode_instruction,
    ),
    BenchmarkSpec(name="demo", task_prefix="Demo/", source=DemoFile()),
)
OWN_TASKS = BenchmarkSpec(name="", task_prefix="", source=None)  # of a user's file, whose ids have no known prefix


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark, or a part of one, with its tasks."""

    name: str  # of its artefacts' directory; of a part with 8 digits of its digest
    title: str  # the name of the whole
    reference: str  # the name or path that the user gave
    file: Path
    digest: str
    problems: Sequence[Problem]
    whole: Sequence[Problem]  # all tasks, of which `problems` may be a part
    left_out: Mapping[str, str] = field(default_factory=dict)  # task id -> why its tests cannot be run

    def without_others(self, samples: Sequence[Completion | Solution]) -> list[Completion | Solution]:
        """The samples without those for tasks of the whole that this part lacks."""
        others = {problem.task_id for problem in self.whole} - {problem.task_id for problem in self.problems}
        return [sample for sample in samples if sample.task_id not in others]


def open_benchmark(reference: str, file: Path, name: str) -> Benchmark:
    """Reads all tasks of a file. `reference` is what the user called it, `name` what its artefacts are called. Raises
    DataError where the file has no known format."""
    problems, left_out = _read_file(file)
    digest = benchmark_digest(problems)
    return Benchmark(name, name, reference, file.resolve(), digest, problems, problems, left_out)


def read_problems(file: Path) -> list[Problem]:
    """The tasks of a file that can be run, in its order. Raises DataError where the file has no known format."""
    return _read_file(file)[0]


def _read_file(file: Path) -> tuple[list[Problem], dict[str, str]]:
    """The tasks, and the ids of those that cannot be run, each with the reason."""
    published = read_published(file)
    if published is not None:
        return published
    return read_tasks(file, lambda task_id, inputs: spec_of(task_id).rebuild_inputs(task_id, inputs)), {}


def locate_benchmark(reference: str, project_path: Path, demo_file: Callable[[], Path]) -> Path:
    """The file of a benchmark: of an official one EvalPlus' override, else its cache, else a download; of the demo what
    `demo_file` gives; else the file at `project_path` or at the reference itself. Raises UsageError for a reference
    that is neither a name nor a file."""
    spec = spec_named(reference)
    match spec.source if spec else None:
        case EvalPlusDownload() as download:
            return _override(download.variable) or _cached_file(download)
        case HubFile() as hosted:
            return _override(hosted.variable) or _hub_file(hosted)
        case DemoFile():
            return demo_file()
    for path in (project_path, Path(reference).expanduser()):
        require_plain_file(path, UsageError)
        if path.is_file():
            return path
    raise _unknown_benchmark(reference)


def benchmark_at_hand(reference: str, project_path: Path, demo_file: Callable[[], Path]) -> Path | None:
    """The benchmark behind a name or a path, without a download; None where there is no such file here."""
    spec = spec_named(reference)
    match spec.source if spec else None:
        case EvalPlusDownload() as download:
            from codetune.benchmark.download import cache_path

            path = _override(download.variable) or cache_path(download.dataset, download.version)
            return path if path.is_file() else None
        case HubFile() as hosted:
            return _override(hosted.variable) or _cached_hub_file(hosted)
        case DemoFile():
            return demo_file()
    return next((path for path in (project_path, Path(reference).expanduser()) if path.is_file()), None)


def spec_named(name: str) -> BenchmarkSpec | None:
    return next((spec for spec in BENCHMARKS if spec.name == name), None)


def spec_of(task_id: str) -> BenchmarkSpec:
    return next((spec for spec in BENCHMARKS if task_id.startswith(spec.task_prefix)), OWN_TASKS)


def output_rule(problem: Problem) -> OutputRule:
    if problem.is_close:
        return AS_ASSERTED_CLOSE
    spec = spec_of(problem.task_id)
    return spec.output_rules.get(problem.entry_point, spec.other_outputs)


def runnable(problem: Problem, sample: Completion | Solution) -> Solution:
    """The program that is judged of a sample, sanitized or not."""
    extract = spec_of(problem.task_id).extract
    return (
        Solution(problem.task_id, extract(problem, sample), sample.sample) if extract else as_solution(problem, sample)
    )


def canonical_program(problem: Problem) -> str:
    """The task's own solution as a whole program."""
    return runnable(problem, Completion(problem.task_id, problem.canonical_solution)).solution


def artefact_name(reference: str, file_digest: Callable[[], str | None]) -> str:
    """The directory name of a benchmark's artefacts: of a file its name without endings. Where that is the name of a
    benchmark in the table, 8 digits of the file's digest follow, so that a user's own tasks are never taken for
    HumanEval's; `file_digest` gives None where there is no such file."""
    if spec_named(reference):
        return reference
    stem = stem_of(Path(reference))
    digest = file_digest() if spec_named(stem) or stem == HOLDOUT else None
    return f"{stem}-{digest[:8]}" if digest else stem


def stem_of(path: Path) -> str:
    """The name of a file without endings, of a hidden file too.

    >>> stem_of(Path("a/.samples.jsonl.gz"))
    'samples'
    """
    return path.name.lstrip(".").partition(".")[0]


def benchmark_digest(problems: Sequence[Problem]) -> str:
    """Equal for equal tasks in equal order, whatever file they came from; results are keyed by it."""
    return hashlib.sha256("\n".join(problem_digest(problem) for problem in problems).encode()).hexdigest()


def problem_digest(problem: Problem) -> str:
    """Fields that most tasks lack count only where a task has them: digests outlive new fields."""
    lacking = [part.name for part in fields(problem) if part.name in LATER_FIELDS and not getattr(problem, part.name)]
    parts = {part.name: getattr(problem, part.name) for part in fields(problem) if part.name not in lacking}
    try:
        text = json.dumps(parts, sort_keys=True, default=_canonical)
    except TypeError:  # a key that is no text, or keys of several types
        text = json.dumps(_without_keys(parts), default=_canonical)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_keys(value: object) -> object:
    """Dictionaries as lists of pairs, in an order that is the same in every run."""
    if isinstance(value, dict):
        return sorted([repr(key), json.dumps(_without_keys(part), default=_canonical)] for key, part in value.items())
    return [_without_keys(part) for part in value] if isinstance(value, list | tuple) else value


def _canonical(value: object) -> object:
    """A value that JSON cannot hold, with the elements of a set in an order that is the same in every run."""
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)


def _override(variable: str) -> Path | None:
    """EvalPlus reads its variable at import; it is read here, so that an empty value is no path and a wrong path is
    named."""
    override = os.environ.get(variable)
    if override and not Path(override).is_file():
        raise DataError(
            f"{variable} names {override}, which is not a file. Expected: the published file of this benchmark, plain "
            "or gzipped. Fix the variable, or unset it."
        )
    return Path(override) if override else None


def _hub_file(source: HubFile) -> Path:
    """Raises DataError where the Hub does not have it or cannot be reached."""
    from codetune.data.hub import hub_snapshot

    found = sorted(hub_snapshot(source.repository, "dataset", [source.pattern]).glob(source.pattern))
    if not found:
        raise DataError(
            f"The cached copy of {source.repository} has no file {source.pattern}. Expected: the published file. Run: "
            f"hf download --repo-type dataset {source.repository}, or name the file in {source.variable}"
        )
    return found[0]


def _cached_hub_file(source: HubFile) -> Path | None:
    """The file in the Hub's cache, without a request; None where it is not there, whatever else of the data set is."""
    from codetune.data.hub import is_cached

    with suppress(DataError):
        return _hub_file(source) if is_cached(source.repository, "dataset") else None
    return None


def _cached_file(source: EvalPlusDownload) -> Path:
    from codetune.benchmark.download import cached_file

    return cached_file(source.dataset, source.version)


def _unknown_benchmark(reference: str) -> UsageError:
    names = [spec.name for spec in BENCHMARKS]
    near = difflib.get_close_matches(reference, names, n=1)
    path = Path(reference)
    kind = "file" if path.suffix or len(path.parts) > 1 else "benchmark"
    return UsageError(
        f"There is no {kind} {reference!r}{f' (did you mean {near[0]}?)' if near else ''}. Expected: "
        f"{', '.join(names)}, or the path of a file of tasks, in EvalPlus format or as published. Name one of them."
    )
