"""sanitize: completions -> programs that can be run, in `solutions/<benchmark>/<label>.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codetune import console
from codetune.benchmark.evalplus_format import pair_with_problems, read_samples, sample_row
from codetune.launch.environment import thread_count
from codetune.project.sections import Project
from codetune.stages.benchmarks import samples_input, tasks_facts, tasks_input
from codetune.stages.generate import GENERATE
from codetune.stages.inputs import artefact_input
from codetune.stages.model_card import update_card
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

if TYPE_CHECKING:
    from codetune.benchmark.sanitize import SanitizedSample


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    return tasks_input(), samples_input("samples") if request.samples else artefact_input(GENERATE)


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    from codetune.benchmark.sanitize_all import sanitize_all

    assert request.tasks is not None
    source: Path = recipe.paths["samples" if request.samples else "generate"]
    pairs = pair_with_problems(request.tasks.problems, request.tasks.without_others(read_samples(source)))
    label = f"sanitize {request.benchmark} {request.label}"
    found = dict(console.track(sanitize_all(pairs, thread_count()), label, len(pairs), "sample"))
    cleaned = [found[position] for position in range(len(pairs))]
    _warn_of_given_up(cleaned)
    write_lines(recipe.artefact, (json.dumps(sample_row(clean.solution)) for clean in cleaned))
    counts = {
        "changed": sum(clean.changed for clean in cleaned),
        "not_parsing": sum(not clean.parses and not clean.given_up for clean in cleaned),
        "given_up": sum(bool(clean.given_up) for clean in cleaned),
    }
    return StageOutput(len(cleaned), {}, counts)


def _warn_of_given_up(cleaned: Sequence[SanitizedSample]) -> None:
    given_up = [clean for clean in cleaned if clean.given_up]
    if given_up:
        first = given_up[0]
        console.warn(
            f"sanitize gave up {len(given_up)} of {len(cleaned)} samples, which will count as failed; the first is "
            f"sample {first.solution.sample} of {first.solution.task_id}: {first.given_up}"
        )


def _details(result: StageResult) -> Details:
    facts = result.facts
    given_up = f", {facts['given_up']} given up" if facts.get("given_up") else ""
    return Details([f"{facts['changed']} changed, {facts['not_parsing']} not valid Python{given_up}"])


SANITIZE = Stage(
    "sanitize",
    _inputs,
    lambda run, request: run.solutions(request.benchmark, request.label),
    _write,
    of_benchmark=True,
    details=_details,
    afterwards=update_card,
    rules=2,  # since thoughts are no part of an answer, and of a function that is defined twice the last counts
    is_taken_over=True,
    facts=tasks_facts,
    documented=("changed", "not_parsing", "given_up"),
)
