"""The rows that select sets aside before its strategy chooses, in this order, each by the first reason that holds:
rows that repeat another one, rows that hold a task of a benchmark, rows whose answer fails a check. Streams
examples.jsonl once for each; keeps the reasons, some 250 bytes for each row that is set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from codetune import console
from codetune.benchmark.benchmarks import spec_named
from codetune.data.ids import IdIndex, pack_ids, unpack_id
from codetune.project.sections import Project
from codetune.records import Example, Problem
from codetune.selection.answer_checks import CHECKS, example_programs, failed_checks
from codetune.selection.best_answer import instruction_digest, less_likely_answers
from codetune.selection.duplicates import find_duplicates
from codetune.selection.leaks import find_leaks
from codetune.selection.select import eligible_rows
from codetune.selection.strategies import SelectionInputs
from codetune.stages.benchmarks import open_whole_benchmark, problems_at_hand
from codetune.stages.sandbox import failed_examples, working_tier
from codetune.stages.stage import Input, Resolved, RunContext, StageRequest, StageResult
from codetune.store.digests import combined
from codetune.store.examples import open_lines, read_example, read_examples

DECONTAMINATED = "decontaminated"  # fact: the benchmarks that rows were compared with -> number of tasks
NOT_AT_HAND = "not_at_hand"  # fact: the benchmarks of evaluate.benchmarks whose files are not on this machine


@dataclass(slots=True)
class Exclusions:
    """The rows that are set aside, by id, each with its reason; and what the manifest says of how they were found."""

    why: dict[str, str] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        """The rows by kind of reason."""
        return Counter(self.kinds())

    def kinds(self) -> Iterator[str]:
        """The kind of reason of each row, in the order of `why`."""
        return map(_kind, self.why.values())

    def among(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each of `ids` is set aside."""
        return IdIndex(pack_ids(self.why)).holds(ids)


def find_exclusions(context: RunContext, refused: NDArray[np.uint64]) -> Exclusions:
    """Looks at all rows but the `refused` ones. Raises InputError for a benchmark that cannot be read, CodetuneError
    where examples are to be run and no sandbox works."""
    settings, found, known = context.project.select, Exclusions(), IdIndex(refused)

    def rest(doing: str) -> Iterator[Example]:
        rows = console.track(read_examples(context.run), f"select: {doing}", None, "row")
        return (row for row in rows if row.id not in found.why and known.find(row.id) is None)

    if settings.deduplicate != "none":
        near, rows = settings.deduplicate == "near", rest("rows that repeat others")
        with open_lines(context.run) as line_of, TemporaryFile(dir=context.run.directory) as file:
            found.why.update(find_duplicates(rows, lambda row: read_example(line_of(row)), near, file))
    if problems := _problems(context, found.facts):
        found.why.update(find_leaks(rest("rows that hold tasks of benchmarks"), problems))
    if checks := [name for name in settings.checks if name in CHECKS]:
        found.why.update(failed_checks(rest("checks of answers"), checks))
    if "examples" in settings.checks:
        programs = example_programs(rest("examples of answers"))
        found.why.update(failed_examples(programs, working_tier(context.project.evaluate.sandbox)))
    return found


def exclude_less_likely_answers(context: RunContext, inputs: SelectionInputs, exclusions: Exclusions) -> None:
    """Sets aside the rows that the strategy could take and that have the instruction of another one with a likelier
    answer. Mismatched pairs are out already: a likely answer to nothing must not displace a good one."""
    assert inputs.nll_conditional is not None
    index, instructions = IdIndex(inputs.ids), np.zeros(len(inputs.ids), dtype=np.uint64)
    for example in console.track(read_examples(context.run), "select: answers to one instruction", None, "row"):
        if (position := index.find(example.id)) is not None:
            instructions[position] = instruction_digest(example)
    rows = eligible_rows(inputs, context.project.select)
    for row, kept in less_likely_answers(instructions, inputs.nll_conditional, rows):
        repeated, likelier = map(unpack_id, inputs.ids[[row, kept]].tolist())
        exclusions.why[repeated] = f"duplicate instruction of {likelier}"


def named_benchmarks_input(project: Project) -> Sequence[Input]:
    """The benchmarks that select.decontaminate names, by their content. Those of `auto` are no input: a benchmark that
    comes onto the machine, or is evaluated later, makes no selection stale, and no model that was trained on it."""
    names = project.select.decontaminate
    if names == "auto" or not names:
        return ()

    def resolve(context: RunContext, request: StageRequest) -> Resolved:
        return Resolved(combined(open_whole_benchmark(context, name).digest for name in names))

    return (Input("benchmarks", resolve, lambda *_: ""),)


def check_filters(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    """Raises InputError for a benchmark that select.decontaminate names and that cannot be read, CodetuneError where
    examples are to be run and no sandbox works."""
    settings = context.project.select
    if settings.decontaminate != "auto":
        for name in settings.decontaminate:
            open_whole_benchmark(context, name)
    if "examples" in settings.checks:
        working_tier(context.project.evaluate.sandbox)


def exclusion_notes(result: StageResult) -> list[str]:
    """What rows were compared with, in sentences."""
    notes = []
    if compared := result.facts.get(DECONTAMINATED):
        tasks = ", ".join(f"{name} ({count} tasks)" for name, count in compared.items())
        notes.append(f"no row that is left holds a prompt or a solution of {tasks}")
    if lacking := result.facts.get(NOT_AT_HAND):
        notes.append(f"not compared with {', '.join(lacking)}: not on this machine. {_remedy(lacking)}")
    return notes


def _remedy(lacking: Sequence[str]) -> str:
    """What brings the benchmarks that are not at hand: a download, or the right path of a file of the user's."""
    known = ", ".join(name for name in lacking if spec_named(name))
    files = ", ".join(name for name in lacking if not spec_named(name))
    remedies = [f"To fetch {known}, name it in select.decontaminate"] if known else []
    return ". ".join([*remedies, *([f"There is no file {files}: fix evaluate.benchmarks"] if files else [])])


def _problems(context: RunContext, facts: dict[str, object]) -> list[Problem]:
    """The tasks to compare with; writes down where they come from."""
    names = context.project.select.decontaminate
    if names == "auto":
        apart = context.project.train.tasks
        named = [*context.project.evaluate.benchmarks, *([apart] if apart else [])]
        at_hand = {name: problems_at_hand(context, name) for name in named}
        if lacking := [name for name, problems in at_hand.items() if problems is None]:
            facts[NOT_AT_HAND] = lacking
    else:
        at_hand = {name: open_whole_benchmark(context, name).problems for name in names}
    problems = {name: found for name, found in at_hand.items() if found is not None}
    if problems:
        facts[DECONTAMINATED] = {name: len(found) for name, found in problems.items()}
    return [problem for found in problems.values() for problem in found]


def _kind(why: str) -> str:
    """The reason without the row or task that it names.

    >>> _kind("near duplicate of 00000000000000aa"), _kind("leak of HumanEval/0"), _kind("check parses: line 1: ...")
    ('near duplicate', 'leak', 'check parses')
    """
    return why.partition(" of ")[0].partition(":")[0]
