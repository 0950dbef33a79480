"""Which statements of a program fill data that stands in its module: a sieve in a loop, a table item by item, a call
of what sets it up. `evalplus.sanitize` keeps the data and loses these. Runs nothing.

What reads input or prints is no such statement, nor is what stands behind the first test: what calls the function
there is an example.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
BLOCKS = ast.For | ast.While | ast.If | ast.With | ast.Try
STREAMS = (("sys", "stdin"), ("sys", "argv"))


def filled_names(statements: Sequence[ast.stmt], entry_point: str) -> Mapping[ast.stmt, set[str]]:
    """Statement -> the module's names whose values it changes."""
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in statements
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    functions = {node.name: node for node in statements if isinstance(node, ast.FunctionDef)}
    found = {}
    for node in statements:
        if isinstance(node, DEFINITIONS):
            continue
        if _is_test(node, entry_point):
            break
        called = [functions[name] for name in _called(node) & functions.keys()]
        if any(_asks(part) or "print" in _called(part) for part in (node, *called)):
            continue
        names = _changed(node).union(*(_changed_inside(function) for function in called)) - imported
        if not _has_attribute_of(node, entry_point):
            names.discard(entry_point)  # data of that name is what a body calls its result, read out of its function
        if names:
            found[node] = names
    return found


def asks_for_input(statements: Sequence[ast.stmt]) -> bool:
    """Whether that happens as soon as the program is loaded."""
    return any(_asks(node) for node in statements if not isinstance(node, DEFINITIONS))


def _asks(tree: ast.AST) -> bool:
    return "input" in _called(tree) or any(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in STREAMS
        for node in ast.walk(tree)
    )


def _has_attribute_of(tree: ast.AST, name: str) -> bool:
    """Whether one is set, such as `f.table = {}`."""
    stored = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not _is_loaded(node))
    return any(isinstance(owner, ast.Name) and owner.id == name for owner in stored)


def _is_test(node: ast.stmt, entry_point: str) -> bool:
    called = _called(node)
    return isinstance(node, ast.Assert) or entry_point in called or (isinstance(node, ast.Expr) and "print" in called)


def _called(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def _changed(statement: ast.stmt) -> set[str]:
    """By the statement itself, the blocks in it included. A bare name counts where it gets a value once more."""
    rebinds = isinstance(statement, BLOCKS | ast.AugAssign | ast.Delete)
    return {
        name
        for node in ast.walk(statement)
        for name in (*_roots(node), *([node.id] if rebinds and _is_written(node) else []))
    }


def _changed_inside(function: ast.FunctionDef) -> set[str]:
    """By a call of the function: what it declares global, and what is not its own."""
    nodes = list(ast.walk(function))
    declared = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    own = {node.id for node in nodes if _is_written(node)} | {node.arg for node in nodes if isinstance(node, ast.arg)}
    return declared | ({name for node in nodes for name in _roots(node)} - own)


def _is_written(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and not _is_loaded(node)


def _is_loaded(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Load)


def _roots(node: ast.AST) -> Iterator[str]:
    """The name at whose item or attribute something is put or removed, or whose method is called for its effect."""
    match node:
        case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
            part: ast.AST = node.value
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=part))):
            pass
        case _:
            return
    while isinstance(part, ast.Subscript | ast.Attribute):
        part = part.value
    if isinstance(part, ast.Name):
        yield part.id
