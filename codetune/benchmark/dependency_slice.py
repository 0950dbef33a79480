"""A program -> the statements that one function of it needs, and the names that it loads and never binds, by Python's
own syntax tree and symbol table (a static backward slice: Weiser 1981, of whole statements of the module).

`evalplus.sanitize` loses decorators, a `try` around an import, two names assigned at once, a helper that only changes
its argument, and a statement that fills a table item by item. Here a statement of any form is kept for the names that
it binds or whose values it changes. Knows nothing of Markdown; runs nothing.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import TypeGuard

BUILTIN_NAMES = frozenset(dir(builtins))
SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
BLOCKS = ast.For | ast.While | ast.If | ast.With | ast.Try
STREAMS = (("sys", "stdin"), ("sys", "argv"))
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
LINE_END = re.compile(r"\r\n?|\n")  # as Python counts lines
FUTURE = 0  # rank of what must stand first
ANY_NAME = "*"  # what `from module import *` binds


def dependency_slice(code: str, entry_point: str) -> str:
    """The statements that bind the entry point and what it needs, or change its values before any test; imports first.
    "" where no statement binds the entry point."""
    tree = parse(code)
    if tree is None:
        return ""
    statements = [node for node in _without_twins(tree.body) if not _is_main_block(node)]
    changed = changed_names(tree.body, entry_point)
    giving: dict[str, list[ast.stmt]] = {}  # name -> the statements that bind it or change its value
    for node in statements:
        for name in _bound(node) | changed.get(node, set()):
            giving.setdefault(name, []).append(node)
    kept = {node for node in statements if _rank(node) == FUTURE}
    needed, waiting = {entry_point, ANY_NAME}, [entry_point, ANY_NAME]
    while waiting:
        for node in giving.get(waiting.pop(), ()):
            if node not in kept:
                kept.add(node)
                found = _loaded_names(_text(code, node)) - needed
                needed |= found
                waiting += found
    if not any(entry_point in _bound(node) for node in kept):
        return ""
    return "\n".join(_text(code, node) for node in sorted(statements, key=_rank) if node in kept)


def without_overwritten(code: str) -> str:
    """The program without those of its functions and classes that a later one of the same name replaces before anything
    uses them: Python keeps the last, `evalplus.sanitize` the first. A function that never returns, or a copy of an
    earlier version that was cut off, replaces nothing; a decorated one may be registered somewhere, and stays."""
    tree = parse(code)
    versions: dict[str, list[ast.stmt]] = {}
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _gives_something(node):
            versions.setdefault(node.name, []).append(node)
    versions = {name: nodes for name, nodes in versions.items() if len(nodes) > 1}
    if tree is None or not versions:
        return code
    uses = _lines_that_use(code, tree.body)
    gone: set[int] = set()
    for name, nodes in versions.items():
        for node, last in _overwritten(code, nodes):
            if not any(node.lineno < line < last.lineno for line in uses.get(name, ())):
                gone.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return "".join(line for number, line in enumerate(_lines(code), start=1) if number not in gone)


def defines(code: str, entry_point: str) -> bool:
    """Whether the program binds the entry point to something of use: a function that never returns is a stub."""
    tree = parse(code)
    for node in _own_nodes(tree) if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry_point:
            if _gives_something(node):
                return True
        elif entry_point in _bound_here(node):
            return True
    return False


def defined_names(code: str) -> set[str]:
    """The names that the statements of a program bind in its module."""
    tree = parse(code)
    return {name for node in tree.body for name in _bound(node)} if tree else set()


def undefined_names(code: str) -> frozenset[str]:
    """The names that a program loads and no statement of it binds, without Python's own. `from module import *` may
    bind some of them."""
    return _loaded_names(code) - defined_names(code) - BUILTIN_NAMES


def state_statements(code: str, entry_point: str) -> dict[str, set[str]]:
    """The statements that change the values of names which the entry point needs, as `statement_texts` has them, and
    these names."""
    part = dependency_slice(code, entry_point)
    tree = parse(part)
    if tree is None:
        return {}
    return {_normalized(part, node): names for node, names in changed_names(tree.body, entry_point).items()}


def statement_texts(code: str) -> set[str]:
    """The statements of a program as texts that can be compared, however they are indented and their lines end."""
    tree = parse(code)
    return {_normalized(code, node) for node in tree.body} if tree else set()


def reads_input(code: str) -> bool:
    """Whether a program reads standard input or its arguments as soon as it is loaded."""
    tree = parse(code)
    return tree is not None and any(_reads_input(node) for node in tree.body if not isinstance(node, DEFINITIONS))


@lru_cache(maxsize=64)  # the same few programs of an answer are looked at again and again
def parse(code: str) -> ast.Module | None:
    """The syntax tree, which must not be changed; None where the code is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, about escapes and comparisons in the model's code
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def changed_names(statements: Sequence[ast.stmt], entry_point: str) -> Mapping[ast.stmt, set[str]]:
    """Statement -> the module's names whose values it changes: in a loop, by item, by a call of a function. Statements
    that read input or print, and all behind the first test, which calls the entry point, are left out."""
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in statements
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    functions = {node.name: node for node in statements if isinstance(node, ast.FunctionDef)}
    talks, changed_inside = cache(_talks), cache(_changed_inside)  # a function may be called on every line
    found = {}
    for node in statements:
        if isinstance(node, DEFINITIONS):
            continue
        if _is_test(node, entry_point):
            break
        called = [functions[name] for name in _called(node) & functions.keys()]
        if any(map(talks, (node, *called))):
            continue
        names = _changed(node).union(*map(changed_inside, called)) - imported
        if not _has_attribute_of(node, entry_point):
            names.discard(entry_point)  # a variable that a body names like its function, read out of the function
        if names:
            found[node] = names
    return found


def _without_twins(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements with one version of each function or class, and of other values bound to its name: the first that
    gives something, as in EvalPlus: an answer's second version is an afterthought, and a prompt's stub gives
    nothing."""
    versions: dict[str, list[ast.stmt]] = {}
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            versions.setdefault(node.name, []).append(node)
        elif name := _rebound_name(node):
            versions.setdefault(name, []).append(node)
    versions = {
        name: nodes
        for name, nodes in versions.items()
        if not all(isinstance(node, ast.Assign | ast.AnnAssign) for node in nodes)
    }
    chosen = {next((node for node in nodes if _gives_something(node)), nodes[-1]) for nodes in versions.values()}
    others = {node for nodes in versions.values() for node in nodes} - chosen
    return (node for node in statements if node not in others)


def _overwritten(code: str, versions: Sequence[ast.stmt]) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Each version that is not the last, and the last."""
    texts = [_normalized(code, node) for node in versions]
    cut_off = next((index for index, text in enumerate(texts) if text.startswith(texts[-1])), 0)
    last = versions[-1] if cut_off == len(versions) - 1 else versions[cut_off]
    yield from ((node, last) for node in versions[: versions.index(last)] if not getattr(node, "decorator_list", None))


def _lines_that_use(code: str, statements: Sequence[ast.stmt]) -> Mapping[str, list[int]]:
    """Name -> the lines where a statement that gives something to a function uses it before any function is called."""
    functions = [node for node in statements if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    needed = {name for node in functions for name in _loaded_names(_text(code, node))}
    found: dict[str, list[int]] = {}
    for node in statements:
        if node in functions:
            parts: Sequence[ast.AST] = [*node.decorator_list, node.args]
        elif isinstance(node, ast.ClassDef) or _bound(node) & needed:
            parts = [node]
        else:
            continue
        for name in {inner.id for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Name)}:
            found.setdefault(name, []).append(node.lineno)
    return found


def _rebound_name(node: ast.stmt) -> str | None:
    """The name of `name = value`, where the value is not made of the name itself, such as `f = cache(f)`."""
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


def _is_main_block(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":`"""
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _rank(node: ast.stmt) -> int:
    """Imports go first, as a decorator above them may need one that stood in a later block."""
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return FUTURE
    return 1 if isinstance(node, ast.Import | ast.ImportFrom) else 2


def _normalized(code: str, node: ast.stmt) -> str:
    return " ".join(_text(code, node).split())


def _text(code: str, node: ast.stmt) -> str:
    if decorators := getattr(node, "decorator_list", None):  # nothing else can stand on the lines of a decorated one
        return "\n".join(_split(code)[decorators[0].lineno - 1 : node.end_lineno])
    assert node.end_lineno is not None
    lines = [line.encode() for line in _lines(code)[node.lineno - 1 : node.end_lineno]]  # columns are those of UTF-8
    lines[-1] = lines[-1][: node.end_col_offset]
    lines[0] = lines[0][node.col_offset :]
    return b"".join(lines).decode()


@lru_cache(maxsize=4)  # `ast.get_source_segment` splits the whole code for every statement
def _lines(code: str) -> list[str]:
    """The lines of a program with their ends."""
    return LINE.findall(code)


@lru_cache(maxsize=4)
def _split(code: str) -> list[str]:
    """The lines of a program without their ends."""
    return LINE_END.split(code)


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement, and the blocks inside of it, binds in the scope where it stands."""
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
    """All nodes but those of functions, classes and comprehensions inside, which have names of their own."""
    waiting = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            yield node
            if not isinstance(node, SCOPES | ast.comprehension):
                waiting.append(node)


@lru_cache(maxsize=64)
def _loaded_names(code: str) -> frozenset[str]:
    """The names that are looked up in the module, from anywhere in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            waiting = [symtable.symtable(code, "<string>", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # such as a `return` of no function
        return frozenset()
    found = set()
    while waiting:
        table = waiting.pop()
        in_module = table.get_type() == "module"
        loaded = (symbol for symbol in table.get_symbols() if symbol.is_referenced())
        found |= {symbol.get_name() for symbol in loaded if in_module or symbol.is_global()}
        waiting += table.get_children()
    return frozenset(found)


def _reads_input(tree: ast.AST) -> bool:
    return "input" in _called(tree) or any(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in STREAMS
        for node in ast.walk(tree)
    )


def _talks(tree: ast.AST) -> bool:
    return _reads_input(tree) or "print" in _called(tree)


def _has_attribute_of(tree: ast.AST, name: str) -> bool:
    """Whether an attribute of the name is set, such as `f.table = {}`."""
    stored = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not _is_loaded(node))
    return any(isinstance(owner, ast.Name) and owner.id == name for owner in stored)


def _is_test(node: ast.stmt, entry_point: str) -> bool:
    called = _called(node)
    return isinstance(node, ast.Assert) or entry_point in called or (isinstance(node, ast.Expr) and "print" in called)


def _called(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def _changed(statement: ast.stmt) -> set[str]:
    """The names whose values a statement changes, the blocks in it included. A bare name counts where it is bound once
    more."""
    rebinds = isinstance(statement, BLOCKS | ast.AugAssign | ast.Delete)
    return {
        name
        for node in ast.walk(statement)
        for name in (*_changed_roots(node), *([node.id] if rebinds and _is_written(node) else []))
    }


def _changed_inside(function: ast.FunctionDef) -> set[str]:
    """The names whose values a call of the function changes: those that it declares global, and those not its own."""
    nodes = list(ast.walk(function))
    declared = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    own = {node.id for node in nodes if _is_written(node)} | {node.arg for node in nodes if isinstance(node, ast.arg)}
    return declared | ({name for node in nodes for name in _changed_roots(node)} - own)


def _is_written(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and not _is_loaded(node)


def _is_loaded(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Load)


def _changed_roots(node: ast.AST) -> Iterator[str]:
    """The name whose item or attribute is set or deleted, or whose method is called for its effect."""
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
