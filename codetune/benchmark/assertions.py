"""`assert f(1, 2) == 3` -> the arguments of the call and the value that it is held against.

Benchmarks come with tests as Python text. A test that runs beside a program can be forged, so it never enters the
sandbox: it is taken apart here along its syntax tree, and nothing of it is run. Arguments and values may be literals
and a few expressions that stand for values (`inf`, `math.pi`, `set([1, 2])`, `complex(1, 2)`, sums and products of
numbers). Every other test is an `UnreadableTestError`; a test is never guessed, and never left out.
"""

from __future__ import annotations

import ast
import cmath
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MOST_POWER = 64  # of a number in a test; larger ones could take any time and memory
CONSTANTS: Mapping[str, object] = {"inf": math.inf, "math.inf": math.inf, "math.pi": math.pi, "cmath.pi": cmath.pi}
CONSTRUCTORS: Mapping[str, Callable[..., object]] = {
    "Counter": Counter,
    "complex": complex,
    "dict": dict,
    "float": float,
    "frozenset": frozenset,
    "list": list,
    "set": set,
    "tuple": tuple,
}
OPERATORS: Mapping[type[ast.operator | ast.unaryop], Callable[..., object]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


class UnreadableTestError(ValueError):
    """A test that cannot be turned into calls and values; the text says what stands there."""


@dataclass(frozen=True, slots=True)
class AssertedCall:
    """A call and the value that it must return. `builders` names the functions that arguments go through first, by
    their name or position. `is_close`: by `math.isclose`, not by `==`."""

    function: str
    positional: tuple[object, ...]
    named: Mapping[str, object]
    expected: object
    is_close: bool = False
    builders: Mapping[str, str] | None = None


def read_assertions(statements: Sequence[ast.stmt], builders: Sequence[str] = ()) -> list[AssertedCall]:
    """The calls of test statements, in their order. `builders` are functions of one argument that a program has beside
    it, such as `tree_node`; their argument is read instead. Raises UnreadableTestError, also where there is none."""
    calls = [_asserted_call(statement, builders) for statement in statements]
    if not calls:
        raise UnreadableTestError("no assertion")
    return calls


def parse_tests(code: str) -> list[ast.stmt]:
    """The statements of a test. Raises UnreadableTestError where it is not Python."""
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError) as why:
        raise UnreadableTestError(f"not Python ({type(why).__name__})") from why


def read_value(code: str) -> object:
    """The value of an expression. Raises UnreadableTestError."""
    try:
        return _value(ast.parse(code.strip(), mode="eval").body)
    except (SyntaxError, RecursionError) as why:
        raise UnreadableTestError(f"{code[:60]!r} is not an expression") from why


def _asserted_call(statement: ast.stmt, builders: Sequence[str]) -> AssertedCall:
    match statement:
        case ast.Assert(test=ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected])):
            return _call(call, _value(expected), False, builders)
        case ast.Assert(test=ast.Call(func=function, args=[ast.Call() as call, expected], keywords=[])) if (
            ast.unparse(function) == "math.isclose"
        ):
            return _call(call, _value(expected), True, builders)
    raise UnreadableTestError(_shown(statement))


def _call(call: ast.Call, expected: object, is_close: bool, builders: Sequence[str]) -> AssertedCall:
    arguments = [(str(place), node) for place, node in enumerate(call.args)]
    named = [(keyword.arg or "**", keyword.value) for keyword in call.keywords]
    found: dict[str, str] = {}
    values: dict[str, object] = {}
    for place, node in (*arguments, *named):
        builder, inner = _builder(node, builders)
        if builder:
            found[place] = builder
        values[place] = _value(inner)
    return AssertedCall(
        function=ast.unparse(call.func),
        positional=tuple(values[place] for place, _ in arguments),
        named={name: values[name] for name, _ in named},
        expected=expected,
        is_close=is_close,
        builders=found,
    )


def _builder(node: ast.expr, builders: Sequence[str]) -> tuple[str, ast.expr]:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in builders:
            return name, inner
    return "", node


def _value(node: ast.expr) -> object:
    """Raises UnreadableTestError for what is no value, or none that can be made of these operations."""
    try:
        return _evaluated(node)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as why:
        if isinstance(why, UnreadableTestError):
            raise
        raise UnreadableTestError(_shown(node)) from why


def _evaluated(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts):
            return [_evaluated(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_evaluated(part) for part in parts)
        case ast.Set(elts=parts):
            return {_evaluated(part) for part in parts}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_evaluated(key): _evaluated(value) for key, value in pairs if key is not None}
        case ast.UnaryOp(op=sign, operand=part) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_number(part))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return _calculated(type(sign), _number(left), _number(right))
        case ast.Call(func=function, args=parts, keywords=named) if ast.unparse(function) in CONSTRUCTORS:
            names = {keyword.arg: _evaluated(keyword.value) for keyword in named if keyword.arg is not None}
            if len(names) == len(named):
                return CONSTRUCTORS[ast.unparse(function)](*map(_evaluated, parts), **names)
        case ast.Name() | ast.Attribute() if ast.unparse(node) in CONSTANTS:
            return CONSTANTS[ast.unparse(node)]
    raise UnreadableTestError(_shown(node))


def _calculated(sign: type[ast.operator], left: complex, right: complex) -> object:
    if sign is ast.Pow and (abs(right) > MOST_POWER or abs(left) > 2**MOST_POWER):
        raise ValueError("too large a power")
    return OPERATORS[sign](left, right)


def _number(node: ast.expr) -> complex:
    value = _evaluated(node)
    if isinstance(value, bool) or not isinstance(value, int | float | complex):
        raise UnreadableTestError(_shown(node))
    return value


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
