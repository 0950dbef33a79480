"""Completions -> runnable programs, by `evalplus.sanitize`: the entry point and what it needs, cut out of prose,
Markdown and left-overs along the syntax tree. Also the reader and the rows of EvalPlus' samples files.

EvalPlus' own result stands, byte for byte, wherever it holds the entry point and every name of the answer that it
loads, with the statements that fill it, reads no input when it is loaded, and did not lose a last line for a fence or
tag on it. Else other ways are tried, and the first with the least of these faults is taken: each part between Markdown
fences by itself, all parts in a row, and a part as the body of the task's prompt; each cut by EvalPlus and by
`dependency_slice.py`. What the model did not write is never added. Nothing is run here.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from evalplus.sanitize import code_extract
from evalplus.sanitize import sanitize as extract

from codetune.benchmark.dependency_slice import (
    asks,
    defines,
    fillings,
    names_defined,
    names_lacking,
    needed_part,
    parsed,
    statements,
)
from codetune.benchmark.rows import read_rows, require_unicode
from codetune.errors import DataError
from codetune.records import Completion, Problem, Solution

FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
# What shares a line with code, and what is put there: fences ("```python def f(x):", "    return x```"), and ends of
# turns and tags that somebody's decoding has left ("    return x</s>").
FORMS = (
    (
        re.compile(
            r"^[ \t]*```+[ \t]*(?:python3?|py)?[ \t]*(?=(?:def|class|from|import|async) |@\w)",
            re.MULTILINE | re.IGNORECASE,
        ),
        "```\n",
    ),
    (re.compile(r"(?:<\|\w+\|>|</s>|<end_of_turn>|</?(?:code|pre)>)+[ \t\r]*$", re.MULTILINE), "\n"),
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
EXPECTED = "a JSONL of samples in EvalPlus format: task_id, and completion or solution"


@dataclass(frozen=True, slots=True)
class Sanitized:
    solution: Solution
    changed: bool  # differs from what the model wrote, behind its prompt where it continued one
    parses: bool


def sanitize(problem: Problem, sample: Completion | Solution) -> Sanitized:
    """Idempotent on its own solutions. A text without any code comes back as it is and is judged as it is.

    A sample is one of EvalPlus' two forms: `completion` continues the task's prompt (`Completion`), `solution` stands
    on its own (`Solution`), such as a chat answer."""
    # The line break is EvalPlus' (evalplus 0.3.1, sanitize.script): a prompt may end without one.
    text = sample.completion if isinstance(sample, Completion) else sample.solution
    written = f"{problem.prompt}\n{text}" if isinstance(sample, Completion) else text
    code = _program(problem, text, written)
    return Sanitized(
        Solution(problem.task_id, code, sample.sample), changed=code != written, parses=parsed(code) is not None
    )


def as_it_is(problem: Problem, sample: Completion | Solution) -> Solution:
    """The program that EvalPlus judges where a sample was not sanitized."""
    if isinstance(sample, Completion):
        return Solution(sample.task_id, problem.prompt + sample.completion, sample.sample)
    return sample


def read_samples(path: Path) -> list[Completion | Solution]:
    """A file in EvalPlus format; a task's samples are counted in the order in which they stand."""
    samples: list[Completion | Solution] = []
    seen: Counter[str] = Counter()
    for place, row in read_rows(path, EXPECTED):
        # As in EvalPlus, a solution goes before a completion.
        form = "solution" if "solution" in row else "completion"
        task_id, text = row.get("task_id"), row.get(form)
        if not isinstance(task_id, str) or not isinstance(text, str):
            raise DataError(
                f"{place}: {_missing(row, form)} (found: {', '.join(row) or 'nothing'}). Expected: {EXPECTED}, all "
                "of them text; several samples of a task are several lines. Mend the line."
            )
        require_unicode(place, "task_id", task_id)
        samples.append((Solution if form == "solution" else Completion)(task_id, text, seen[task_id]))
        seen[task_id] += 1
    if not samples:
        raise DataError(f"{path}: no samples. Expected: {EXPECTED}. Name another file.")
    return samples


def sample_row(sample: Completion | Solution) -> dict[str, str]:
    """The line of a samples file that `read_samples` and EvalPlus read back."""
    if isinstance(sample, Completion):
        return {"task_id": sample.task_id, "completion": sample.completion}
    return {"task_id": sample.task_id, "solution": sample.solution}


def _program(problem: Problem, text: str, written: str) -> str:
    """Ours is cut once more until that changes nothing, as its own second reading will."""
    entry_point = problem.entry_point
    code = _extract(written, entry_point)
    sources = _sources(written, text)
    faults = _Faults(entry_point, sources)
    if not any(faults.of(code)):
        lost = (cut for cut in _cuts(sources, entry_point) if _has_a_longer_end(cut, code))
        best = next(lost, code) if MARKED_LINE.search(text) else code
        return code if best == code else _program(problem, best, best)
    best = min([code, *_cuts(sources, entry_point)], key=faults.of)
    if not defines(best, entry_point):
        bodies = [body for part in (text, *_parts(text), code) for body in _with_body(problem, part)]
        best = min([best, *_cuts(bodies, entry_point)], key=faults.of)
    if faults.of(best) >= faults.of(code):
        return code
    return best if best == written else _program(problem, best, best)


class _Faults:
    """What a cut of an answer has lost of it, or should have lost; nothing where EvalPlus' cut is as good as any."""

    def __init__(self, entry_point: str, sources: Sequence[str]) -> None:
        self._entry_point = entry_point
        self._there = set[str]().union(*map(names_defined, sources))
        self._filled = [item for source in sources for item in fillings(source, entry_point).items()]

    def of(self, program: str) -> tuple[bool, int, bool, int]:
        lacking = names_lacking(program) & self._there
        return not defines(program, self._entry_point), len(lacking), asks(program), self._count_lost(program)

    def _count_lost(self, program: str) -> int:
        if not self._filled:
            return 0
        names, found = names_defined(program), statements(program)
        return len({text for text, filled in self._filled if text not in found and filled & names})


def _has_a_longer_end(cut: str, code: str) -> bool:
    """Whether a cut is the code with more lines of its last definition, and nothing else."""
    longer, tree = parsed(cut), parsed(code)
    if longer is None or tree is None or not cut.startswith(f"{code}\n"):
        return False
    nodes = (sum(1 for _ in ast.walk(program)) for program in (longer, tree))
    return len(longer.body) == len(tree.body) and next(nodes) > next(nodes)


@lru_cache(maxsize=32)  # it parses a text once for every pair of its lines, and the same one comes by several ways
def _extract(written: str, entry_point: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, about escapes and comparisons in the model's code
            code: str = extract(written, entry_point)
    # evalplus 0.3.1 expects a SyntaxError only: null bytes, lone surrogates and deep nesting raise these.
    except (ValueError, RecursionError):
        return written
    return code


def _cuts(sources: Iterable[str], entry_point: str) -> Iterator[str]:
    for source in sources:
        yield _extract(source, entry_point)
        yield needed_part(source, entry_point)


def _sources(written: str, text: str) -> list[str]:
    """Programs in an answer: its longest, that of each part, and these one behind the other. The first part has the
    prompt in it or not."""
    parts = dict.fromkeys(map(_longest, [*_parts(written), *_parts(text)[:1]]))
    programs = [part for part in parts if parsed(part)]
    return [_longest(written), *programs, "\n".join(programs)]


def _longest(text: str) -> str:
    if parsed(text):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code: str = code_extract(text)
    except (ValueError, RecursionError):
        return text
    return code


def _parts(text: str) -> list[str]:
    """Fences are not told into opening and closing ones: a text may begin inside of a block or end there, and prose
    between two blocks defines nothing."""
    for form, instead in FORMS:
        text = form.sub(instead, text)
    if QUOTED_FENCE.search(text):
        text = QUOTE.sub("", text)
    return [_dedented(part) for part in FENCE_LINE.split(text)]


def _dedented(part: str) -> str:
    """With other line ends only where it must be another text anyway: EvalPlus keeps them."""
    lines = LINE_END.sub("\n", part)
    dedented = textwrap.dedent(lines)
    return part if dedented == lines else dedented


def _with_body(problem: Problem, part: str) -> Iterator[str]:
    """The task's prompt continued by as many lines as make a function: with their own indentation, with the prompt's,
    and with the prompt's for the first line only, of which the model saw the indentation. What keeps most is first."""
    part = LEADING_TABS.sub(lambda found: found[0].expandtabs(len(INDENTATION)), part)
    found: list[tuple[int, str]] = []
    for body in (part.strip("\n"), textwrap.indent(part.strip(), INDENTATION), INDENTATION + part.strip()):
        lines = body.split("\n")
        programs = ((end, "\n".join([problem.prompt, *lines[:end]])) for end in range(len(lines), 0, -1))
        found += islice((both for both in programs if defines(both[1], problem.entry_point)), 1)
    yield from (program for _, program in sorted(found, key=lambda both: -both[0]))


def _missing(row: dict[str, object], form: str) -> str:
    if not isinstance(row.get("task_id"), str):
        return "no task_id that is text"
    return f"{form} is {type(row[form]).__name__}" if form in row else "neither completion nor solution"
