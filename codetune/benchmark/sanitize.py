"""Completions -> programs that can be run, by `evalplus.sanitize`: the entry point and what it needs, cut out of
prose, Markdown and leftovers along the syntax tree.

EvalPlus' result stands, byte for byte, if it defines the entry point and every name of the answer that it loads, keeps
the statements that fill its data, reads no input when loaded, and lost no last line with a fence or tag. Otherwise each
part between Markdown fences, all parts in a row, and a part as the body of the prompt are cut by EvalPlus and by
`dependency_slice.py`, and the first with the fewest faults is taken. Nothing is added to what the model wrote.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from codetune.benchmark.benchmarks import spec_of
from codetune.benchmark.dependency_slice import (
    defined_names,
    defines,
    dependency_slice,
    parse,
    reads_input,
    state_statements,
    statement_texts,
    undefined_names,
)
from codetune.benchmark.evalplus_cut import evalplus_program, longest_program
from codetune.benchmark.longest_program import last_end
from codetune.data.thinking import without_thinking
from codetune.records import Completion, Problem, Solution

FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
# A fence that shares a line with code ("```python def f(x):").
FENCE_BEFORE_CODE = re.compile(
    r"^[ \t]*```+[ \t]*(?:(?:python3?|py)[ \t]*)?(?=(?:def|class|from|import|async) |@\w)",
    re.MULTILINE | re.IGNORECASE,
)
# Ends of turns and tags that a decoder has left on a line of code ("    return x</s>").
END_TAG = re.compile(r"<\|\w+\|>|</s>|<end_of_turn>|</?(?:code|pre)>")
BLANK = " \t\r"
# What else shares a line with code, and its replacement: a tag, and a fence ("    return x```").
REPLACEMENTS = (
    (re.compile(r"^(?:<(?:code|pre)>)+", re.MULTILINE), "\n"),
    (re.compile(r"(?<=[^\s`])[ \t]*```+[ \t\r]*$", re.MULTILINE), "\n```"),
)
# EvalPlus drops such a line, the function's last: what stands before it may look whole.
MARKED_LINE = re.compile(r"^[ \t]+\S.*(?:```|\|>|</s>|<end_of_turn>|</(?:code|pre)>)[ \t\r]*$", re.MULTILINE)
QUOTED_FENCE = re.compile(r"^[ \t]*>[ \t]*(?:```|~~~)", re.MULTILINE)
QUOTE = re.compile(r"^[ \t]*> ?", re.MULTILINE)
LINE_END = re.compile(r"\r\n?")
INDENTATION = "    "
LEADING_TABS = re.compile(r"^[ \t]*\t", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SanitizedSample:
    solution: Solution
    changed: bool  # differs from what the model wrote, behind the prompt where it continued one
    parses: bool
    given_up: str = ""  # why no program was looked for any longer; then the solution is empty


def sanitize(problem: Problem, sample: Completion | Solution) -> SanitizedSample:
    """Extracts the program of a sample: a `Completion` continues the task's prompt, a `Solution` stands on its own, as
    a chat answer does. Idempotent on its own solutions. A text without any code is returned, and judged, as it is. What
    a model has thought aloud before is no part of its answer."""
    # The line break is EvalPlus' (evalplus 0.3.1, sanitize.script): a prompt may end without one.
    text = sample.completion if isinstance(sample, Completion) else sample.solution
    written = f"{problem.prompt}\n{text}" if isinstance(sample, Completion) else text
    if extract := spec_of(problem.task_id).extract:
        code = extract(problem, sample)
        return SanitizedSample(
            Solution(problem.task_id, code, sample.sample), changed=code != text, parses=parse(code) is not None
        )
    answer = text if parse(written) else without_thinking(text)
    code = _program(problem, answer, f"{problem.prompt}\n{answer}" if isinstance(sample, Completion) else answer)
    return SanitizedSample(
        Solution(problem.task_id, code, sample.sample), changed=code != written, parses=parse(code) is not None
    )


def _program(problem: Problem, text: str, written: str) -> str:
    """A program other than EvalPlus' is extracted again until nothing changes, so that sanitizing is idempotent."""
    entry_point = problem.entry_point
    code = evalplus_program(written, entry_point)
    sources = _sources(written, text)
    faults = _Faults(entry_point, sources)
    if not any(faults.of(code)):
        longer = (cut for cut in _cuts(sources, entry_point) if _has_a_longer_end(cut, code))
        best = next(longer, code) if MARKED_LINE.search(text) else code
        return code if best == code else _program(problem, best, best)
    best = min([code, *_cuts(sources, entry_point)], key=faults.of)
    if not defines(best, entry_point):
        bodies = [body for part in (text, *_parts(text), code) for body in _as_body(problem, part)]
        best = min([best, *_cuts(bodies, entry_point)], key=faults.of)
    if faults.of(best) >= faults.of(code):
        return code
    return best if best == written else _program(problem, best, best)


class _Faults:
    """Counts what a cut of an answer has lost of it, or should have lost; all are zero where none can be better."""

    def __init__(self, entry_point: str, sources: Sequence[str]) -> None:
        self._entry_point = entry_point
        self._defined = set[str]().union(*map(defined_names, sources))
        self._state = [item for source in sources for item in state_statements(source, entry_point).items()]

    def of(self, program: str) -> tuple[bool, int, bool, int]:
        lost = len(undefined_names(program) & self._defined)
        return not defines(program, self._entry_point), lost, reads_input(program), self._count_lost_state(program)

    def _count_lost_state(self, program: str) -> int:
        if not self._state:
            return 0
        names, found = defined_names(program), statement_texts(program)
        return len({text for text, changed in self._state if text not in found and changed & names})


def _has_a_longer_end(cut: str, code: str) -> bool:
    """Whether a cut is the code with more lines of its last definition, and nothing else."""
    longer, tree = parse(cut), parse(code)
    if longer is None or tree is None or not cut.startswith(f"{code}\n"):
        return False
    nodes = (sum(1 for _ in ast.walk(program)) for program in (longer, tree))
    return len(longer.body) == len(tree.body) and next(nodes) > next(nodes)


def _cuts(sources: Iterable[str], entry_point: str) -> Iterator[str]:
    for source in sources:
        yield evalplus_program(source, entry_point)
        yield dependency_slice(source, entry_point)


def _sources(written: str, text: str) -> list[str]:
    """Programs in an answer: its longest, that of each part, and all these in a row. The first part is tried with the
    prompt before it and without."""
    parts = dict.fromkeys(map(longest_program, [*_parts(written), *_parts(text)[:1]]))
    programs = [part for part in parts if parse(part)]
    return [longest_program(written), *programs, "\n".join(programs)]


def _parts(text: str) -> list[str]:
    """The texts between fences. Opening and closing fences are not told apart: a text may begin or end inside of a
    block, and prose between two blocks defines nothing."""
    text = FENCE_BEFORE_CODE.sub("```\n", text)
    text = "\n".join(map(_without_end_tags, text.split("\n")))
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if QUOTED_FENCE.search(text):
        text = QUOTE.sub("", text)
    return [_dedented(part) for part in FENCE_LINE.split(text)]


def _without_end_tags(line: str) -> str:
    """A break takes the place of the tags, so that a fence can stand behind it."""
    begin = end = len(line.rstrip(BLANK))
    for tag in reversed(list(END_TAG.finditer(line))):
        if tag.end() == begin:
            begin = tag.start()
    return line if begin == end else f"{line[:begin]}\n"


def _dedented(part: str) -> str:
    """Line ends are changed only where the text changes anyway: EvalPlus keeps them."""
    lines = LINE_END.sub("\n", part)
    dedented = textwrap.dedent(lines)
    return part if dedented == lines else dedented


def _as_body(problem: Problem, part: str) -> Iterator[str]:
    """The task's prompt continued by as many lines of the part as make a function: with their own indentation, with the
    prompt's, and with the prompt's for the first line only, where the prompt had ended in it. Longest first."""
    part = LEADING_TABS.sub(lambda found: found[0].expandtabs(len(INDENTATION)), part)
    prompt = problem.prompt.split("\n")
    found: list[tuple[int, str]] = []
    for body in (part.strip("\n"), textwrap.indent(part.strip(), INDENTATION), INDENTATION + part.strip()):
        lines = [*prompt, *body.split("\n")]
        end = last_end(lines, 0, len(prompt))
        program = "\n".join(lines[: end + 1]) if end is not None else ""
        if end is not None and defines(program, problem.entry_point):
            found.append((end, program))
    yield from (program for _, program in sorted(found, key=lambda both: -both[0]))
