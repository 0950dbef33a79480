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

BUILTIN_NAMES = frozenset(dir(builtins))
SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
LINE_END = re.compile(r"\r\n?|\n")  # as Python counts lines
FUTURE = 0  # rank of what must stand first
ANY_NAME = "*"  # what `from module import *` binds


def needed_part(code: str, entry_point: str) -> str:
    """The statements that bind the entry point and what it needs, imports first; "" where nothing binds it."""
    tree = parsed(code)
    if tree is None:
        return ""
    statements = [node for node in _without_twins(tree.body) if not _is_for_scripts(node)]
    texts = {node: _text(code, node) for node in statements}
    kept = {node for node in statements if _rank(node) == FUTURE}
    needed, waiting = {entry_point, ANY_NAME}, [entry_point, ANY_NAME]
    while waiting:
        name = waiting.pop()
        for node in statements:
            if node not in kept and name in _bound(node):
                kept.add(node)
                found = _loaded(texts[node]) - needed
                needed |= found
                waiting += found
    if not any(entry_point in _bound(node) for node in kept):
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


def names_lacking(code: str) -> set[str]:
    """What a program loads and nobody binds. Nothing is known of one that takes all names of a module."""
    there = names_defined(code)
    return set() if ANY_NAME in there else _loaded(code) - there - BUILTIN_NAMES


def parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, about escapes and comparisons in the model's code
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without_twins(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Of several functions or classes of one name the first that gives something, as EvalPlus does: an answer's second
    version is an afterthought, and a prompt's stub is none."""
    versions: dict[str, list[ast.stmt]] = {}
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            versions.setdefault(node.name, []).append(node)
    chosen = {next((node for node in of if _gives_something(node)), of[-1]) for of in versions.values()}
    others = {node for of in versions.values() for node in of} - chosen
    return (node for node in statements if node not in others)


def _gives_something(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return True
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
    text = ast.get_source_segment(code, node)
    assert text is not None
    return text


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
