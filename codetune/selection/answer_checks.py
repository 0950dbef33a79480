"""Examples -> the rows whose answer has a fault that needs no model to find. A check is a function in CHECKS, of the
answer's Python program here and of its text in `text_checks`, or the check `examples`, whose programs the caller runs
in a sandbox.

The program of an answer is its longest block that is marked as Python, or the whole text where it is evidently Python:
it begins with code, and a line begins a function or class as only Python does. Interactive sessions are no programs.
Answers in other languages, and answers of prose with bare code between, have no program and are not judged.

No check says that an answer does what the instruction asks."""

from __future__ import annotations

import ast
import builtins
import doctest
import re
import symtable
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from codetune.records import Example
from codetune.selection.text_checks import closed, language, repeats

# A line of ``` that is indented by more than 3 ends no block that begins further to the left: it is a line of the code.
FENCED = re.compile(
    r"^([ \t]*)```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^(?:\1[ \t]{0,3}|[ \t]{0,3})```[ \t\r]*$", re.MULTILINE | re.DOTALL
)
FENCE_LINE = re.compile(r"^[ \t]*```.*$", re.MULTILINE)
PYTHON = ("python", "py", "python3")
DEFINITION = re.compile(
    r"^(?:(?:async )?def \w+\(.*\)(?: *->[^:=]+)?|class \w+(?:\(.*\))?) *: *(?:#.*)?$", re.MULTILINE
)
FIRST_LINE = re.compile(r"(?:(?:async )?def |class |import |from [\w.]+ import |@|#(?!include|define)|[\w.]+ = )")
PROSE = re.compile(r"\W*[A-Z][\w',-]*(?: [\w'\",.()`-]+){2,}")  # a line that begins like a sentence
SENTENCE = re.compile(r"[A-Z][a-z]* [^=]*[.:!?]$")
IDENTIFIER = re.compile(r"\b[^\W\d]\w*")
SESSION = ">>>"
LONGEST_PROGRAM = 1_000_000  # characters; beyond that nothing is judged
# Names that no line of a program defines: of a module or class, of notebooks, and of Python on Windows.
OF_MODULES = {"__file__", "__path__", "__annotations__", "__builtins__", "__module__", "__qualname__"}
GIVEN = frozenset({*dir(builtins), *OF_MODULES, "get_ipython", "display", "WindowsError"})


@dataclass(frozen=True, slots=True)
class ExampleProgram:
    """A program with the examples that it must give: interactive sessions and assertions."""

    row_id: str
    code: str
    sessions: tuple[str, ...]
    assertions: tuple[str, ...]


def failed_checks(examples: Iterable[Example], checks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(id, "check NAME: ...") of each row that fails one of the checks, the first in the order of CHECKS."""
    wanted = [name for name in CHECKS if name in tuple(checks)]
    for example in examples:
        for name, why in ((name, CHECKS[name](example)) for name in wanted):
            if why is not None:
                yield example.id, f"check {name}: {why}"
                break


def example_programs(examples: Iterable[Example]) -> Iterator[ExampleProgram]:
    """The programs that have examples: in the docstrings of the answer, or in the instruction for a function that the
    answer defines."""
    for example in examples:
        program = find_program(example.answer)
        tree = None if program is None else _parsed(program)
        if program is not None and isinstance(tree, ast.Module):
            told = (*map(_without_fences, _docstrings(tree)), *_told_sessions(example, tree))
            sessions = tuple(text for text in told if SESSION in text)
            assertions = tuple(_told_assertions(example, tree))
            if sessions or assertions:
                yield ExampleProgram(example.id, program, sessions, assertions)


def find_program(answer: str) -> str | None:
    """The Python program of an answer, without the indentation that all its lines share; None where there is none."""
    blocks = (code for _, language, code in FENCED.findall(answer) if language.lower() in PYTHON)
    marked = [code for code in blocks if not _is_session(code)]
    if marked:
        program = textwrap.dedent(max(marked, key=len))
    elif "```" in answer or not _is_evidently_python(answer):
        return None
    else:
        program = answer
    return program if len(program) <= LONGEST_PROGRAM else None


def _is_session(code: str) -> bool:
    """Whether the first line that is no comment is one of an interactive session."""
    lines = (line.lstrip() for line in code.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "").startswith(SESSION)


def _is_evidently_python(text: str) -> bool:
    if not DEFINITION.search(text) or not FIRST_LINE.match(text.lstrip()):
        return False
    tree = _parsed(text)
    if isinstance(tree, ast.Module):
        return True
    lines = text.splitlines()
    return tree.line is None or not PROSE.match(lines[min(tree.line, len(lines)) - 1])


@dataclass(frozen=True, slots=True)
class Unparsable:
    """What the parser refuses, in its words."""

    why: str
    line: int | None = None  # from 1


def _parsed(program: str) -> ast.Module | Unparsable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings, for instance
        try:
            return ast.parse(program)
        except SyntaxError as why:
            return Unparsable(str(why.msg), why.lineno)
        except ValueError as why:  # a NUL character
            return Unparsable(str(why))
        except (RecursionError, MemoryError):
            return Unparsable("it is nested too deeply")


def _parses(example: Example) -> str | None:
    program = find_program(example.answer)
    tree = None if program is None else _parsed(program)
    if not isinstance(tree, Unparsable):
        return None
    return tree.why if tree.line is None else f"line {tree.line}: {tree.why}"


def _names(example: Example) -> str | None:
    """Names that a function or the module reads and nothing defines: neither the program, nor Python, nor any word of
    the instruction or of the rest of the answer, which may hold the code that this one belongs to."""
    program = find_program(example.answer)
    tree = None if program is None else _parsed(program)
    if program is None or not isinstance(tree, ast.Module) or _imports_everything(tree):
        return None
    known = GIVEN | set(IDENTIFIER.findall(example.instruction))
    known |= set(IDENTIFIER.findall(example.answer.replace(program, "")))
    unknown = sorted(_undefined(program) - known)
    return f"nothing defines {', '.join(unknown)}" if unknown else None


CHECKS: Mapping[str, Callable[[Example], str | None]] = {
    "parses": _parses,
    "names": _names,
    "closed": closed,
    "language": language,
    "repeats": repeats,
}


def _undefined(program: str) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = symtable.symtable(program, "<answer>", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return set()  # `return` outside of a function, for instance
    read, defined = set[str](), set[str]()
    for table in _tables(module):
        for symbol in table.get_symbols():
            is_global = table is module or symbol.is_global()
            if is_global and symbol.is_referenced():
                read.add(symbol.get_name())
            if is_global and (symbol.is_assigned() or symbol.is_imported() or symbol.is_annotated()):
                defined.add(symbol.get_name())
    return read - defined


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    waiting = [table]
    while waiting:
        at = waiting.pop()
        yield at
        waiting.extend(at.get_children())


def _imports_everything(tree: ast.Module) -> bool:
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return any(name.name == "*" for node in froms for name in node.names)


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _told_sessions(example: Example, tree: ast.Module) -> Iterator[str]:
    """The examples of the instruction's interactive sessions that call a function of the program; none where a sentence
    follows without an empty line, which would be read as what an example gives."""
    if SESSION not in example.instruction:
        return
    try:
        told = doctest.DocTestParser().get_examples(_without_fences(example.instruction))
    except ValueError:  # no space after the prompt, for instance
        return
    if told and all(_calls(one.source, tree) and not _ends_in_prose(one.want) for one in told):
        yield "\n".join(
            f"{SESSION} " + one.source.rstrip("\n").replace("\n", "\n... ") + f"\n{one.want}" for one in told
        )


def _ends_in_prose(want: str) -> bool:
    """Whether a line after the first of what an example gives reads like a sentence."""
    _, *others = want.splitlines() or [""]
    return any(PROSE.match(line) or SENTENCE.match(line) for line in others)


def _without_fences(text: str) -> str:
    """The text with empty lines in the place of fences, which would be read as what an example gives."""
    return FENCE_LINE.sub("", text)


def _told_assertions(example: Example, tree: ast.Module) -> Iterator[str]:
    lines = (line.strip() for line in example.instruction.splitlines())
    return (line for line in lines if line.startswith("assert ") and _calls(line, tree))


def _calls(source: str, tree: ast.Module) -> bool:
    """Whether one line of code calls a function of the program and reads no other name that Python does not have."""
    parsed = _parsed(source)
    if not isinstance(parsed, ast.Module):
        return False
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    called = {
        node.func.id for node in ast.walk(parsed) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return bool(called & defined) and not _undefined(source) - GIVEN - defined
