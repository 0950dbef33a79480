"""sanitize: completions -> programs that can be run, in `solutions/<benchmark>/<label>.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from codetune import console
from codetune.benchmark.evalplus_format import pair_with_problems, read_samples, sample_row
from codetune.project.sections import Project
from codetune.stages.benchmarks import samples_input, tasks_facts, tasks_input
from codetune.stages.generate import GENERATE
from codetune.stages.inputs import artefact_input
from codetune.stages.stage import (
    Details,
    Input,
    Recipe,
    RunContext,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.store.files import write_lines


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    return tasks_input(), samples_input("samples") if request.samples else artefact_input(GENERATE)


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    from codetune.benchmark.sanitize import sanitize

    assert request.tasks is not None
    source: Path = recipe.paths["samples" if request.samples else "generate"]
    pairs = pair_with_problems(request.tasks.problems, read_samples(source))
    label = f"sanitize {request.benchmark} {request.label}"
    cleaned = [sanitize(problem, sample) for problem, sample in console.track(pairs, label, len(pairs), "sample")]
    write_lines(recipe.artefact, (json.dumps(sample_row(clean.solution)) for clean in cleaned))
    counts = {
        "changed": sum(clean.changed for clean in cleaned),
        "not_parsing": sum(not clean.parses for clean in cleaned),
    }
    return StageOutput(len(cleaned), {}, counts)


def _details(result: StageResult) -> Details:
    return Details([f"{result.facts['changed']} changed, {result.facts['not_parsing']} do not parse"])


SANITIZE = Stage(
    "sanitize",
    _inputs,
    lambda run, request: run.solutions(request.benchmark, request.label),
    _write,
    of_benchmark=True,
    details=_details,
    is_taken_over=True,
    facts=tasks_facts,
    documented=("changed", "not_parsing"),
)
