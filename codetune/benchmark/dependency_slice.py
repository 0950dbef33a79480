"""Which statements of a program a function needs, and which names a program lacks: by Python's own syntax tree and
symbol table.

What `evalplus.sanitize` looks at is assignments, imports, classes and functions that return something, each of them
bare: a decorator, a `try` around an import, two names assigned at once or a helper that only changes its argument, and
the definition is lost. Here a statement is kept for the names that it binds, whatever its form. Knows nothing of
Markdown; runs nothing.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

from codetune.benchmark.module_state import asks_for_input, filled_names

BUILTIN_NAMES = frozenset(dir(builtins))
SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
LINE_END = re.compile(r"\r\n?|\n")  # as Python counts lines
FUTURE = 0  # rank of what must stand first
ANY_NAME = "*"  # what `from module import *` binds


def needed_part(code: str, entry_point: str) -> str:
    """The statements that bind the entry point and what it needs, or fill it before any test; imports first. "" where
    nothing binds it."""
    tree = parsed(code)
    if tree is None:
        return ""
    statements = [node for node in _without_twins(tree.body) if not _is_for_scripts(node)]
    bound, filled = {node: _bound(node) for node in statements}, filled_names(tree.body, entry_point)
    texts = {node: _text(code, node) for node in statements}
    kept = {node for node in statements if _rank(node) == FUTURE}
    needed, waiting = {entry_point, ANY_NAME}, [entry_point, ANY_NAME]
    while waiting:
        name = waiting.pop()
        for node in statements:
            if node not in kept and (name in bound[node] or name in filled.get(node, ())):
                kept.add(node)
                found = _loaded(texts[node]) - needed
                needed |= found
                waiting += found
    if not any(entry_point in bound[node] for node in kept):
        return ""
    return "\n".join(texts[node] for node in sorted(statements, key=_rank) if node in kept)


def defines(code: str, entry_point: str) -> bool:
    """Whether calling the entry point can come to anything: a function that never returns is a stub."""
    tree = parsed(code)
    for node in _own_nodes(tree) if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry_point:
            if _gives_something(node):
                return True
        elif entry_point in _bound_here(node):
            return True
    return False


def names_defined(code: str) -> set[str]:
    tree = parsed(code)
    return {name for node in tree.body for name in _bound(node)} if tree else set()


def fillings(code: str, entry_point: str) -> dict[str, set[str]]:
    """The statements that fill what the entry point needs, as `statements` has them, and the names of it."""
    part = needed_part(code, entry_point)
    tree = parsed(part)
    return {_words(part, node): names for node, names in filled_names(tree.body, entry_point).items()} if tree else {}


def statements(code: str) -> set[str]:
    """As texts to be compared."""
    tree = parsed(code)
    return {_words(code, node) for node in tree.body} if tree else set()


def _words(code: str, node: ast.stmt) -> str:
    """However it is indented and its lines end."""
    return " ".join(_text(code, node).split())


def asks(code: str) -> bool:
    """Whether it reads input as soon as it is loaded."""
    tree = parsed(code)
    return tree is not None and asks_for_input(tree.body)


def names_lacking(code: str) -> set[str]:
    """What a program loads and none of its statements binds; it may take all names of a module, which bind some."""
    return _loaded(code) - names_defined(code) - BUILTIN_NAMES


def parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, about escapes and comparisons in the model's code
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without_twins(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Of several functions or classes of one name, and what else is called by it, the first that gives something, as
    EvalPlus does: an answer's second version is an afterthought, and a prompt's stub is none."""
    versions: dict[str, list[ast.stmt]] = {}
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            versions.setdefault(node.name, []).append(node)
        elif name := _named_anew(node):
            versions.setdefault(name, []).append(node)
    versions = {
        name: of
        for name, of in versions.items()
        if not all(isinstance(node, ast.Assign | ast.AnnAssign) for node in of)
    }
    chosen = {next((node for node in of if _gives_something(node)), of[-1]) for of in versions.values()}
    others = {node for of in versions.values() for node in of} - chosen
    return (node for node in statements if node not in others)


def _named_anew(node: ast.stmt) -> str | None:
    """`name = something`, where that is not the name itself once more, such as `f = cache(f)`."""
    match node:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(target=ast.Name(id=name), value=value)
        ):
            if value and not any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(value)):
                return str(name)
    return None


def _gives_something(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not isinstance(node.value, ast.Constant)
    return any(isinstance(inner, ast.Return | ast.Yield | ast.YieldFrom) for inner in _own_nodes(node))


def _is_for_scripts(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`"""
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _rank(node: ast.stmt) -> int:
    """Imports go first, as a decorator above them may need one that stood in a later block."""
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return FUTURE
    return 1 if isinstance(node, ast.Import | ast.ImportFrom) else 2


def _text(code: str, node: ast.stmt) -> str:
    if decorators := getattr(node, "decorator_list", None):  # nothing else can stand on the lines of a decorated one
        return "\n".join(LINE_END.split(code)[decorators[0].lineno - 1 : node.end_lineno])
    assert node.end_lineno is not None
    lines = [line.encode() for line in _lines(code)[node.lineno - 1 : node.end_lineno]]  # columns are those of UTF-8
    lines[-1] = lines[-1][: node.end_col_offset]
    lines[0] = lines[0][node.col_offset :]
    return b"".join(lines).decode()


@lru_cache(maxsize=4)  # `ast.get_source_segment` splits the whole code for every statement
def _lines(code: str) -> list[str]:
    """With their ends."""
    return LINE.findall(code)


def _bound(statement: ast.stmt) -> set[str]:
    """By a statement, and the blocks inside of it, in the scope where it stands."""
    return _bound_here(statement).union(
        *(() if isinstance(statement, SCOPES) else map(_bound_here, _own_nodes(statement)))
    )


def _bound_here(node: ast.AST) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.alias(name=name, asname=other):
            return {other or name.partition(".")[0]}
    return set()


def _own_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Without those of functions, classes and comprehensions inside, which have names of their own."""
    waiting = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            yield node
            if not isinstance(node, SCOPES | ast.comprehension):
                waiting.append(node)


def _loaded(code: str) -> set[str]:
    """Names that are looked up in the module, from wherever in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            waiting = [symtable.symtable(code, "<string>", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # such as a `return` of no function
        return set()
    found = set()
    while waiting:
        table = waiting.pop()
        in_module = table.get_type() == "module"
        symbols = table.get_symbols()
        found |= {
            symbol.get_name() for symbol in symbols if symbol.is_referenced() and (in_module or symbol.is_global())
        }
        waiting += table.get_children()
    return found
