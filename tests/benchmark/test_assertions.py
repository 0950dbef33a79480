from __future__ import annotations

import math
from collections import Counter

import pytest

from codetune.benchmark.assertions import (
    AssertedCall,
    UnreadableTestError,
    parse_tests,
    read_assertions,
    read_value,
)


def test_an_assertion_is_a_call_and_the_value_that_it_is_held_against() -> None:
    code = "assert f(1, [2.5], key={'a': (True, None)}) == {'b'}\nassert math.isclose(f(2), 0.1)"
    assert read_assertions(parse_tests(code)) == [
        AssertedCall("f", (1, [2.5]), {"key": {"a": (True, None)}}, {"b"}, False, {}),
        AssertedCall("f", (2,), {}, 0.1, True, {}),
    ]


def test_a_builder_is_named_and_its_argument_read() -> None:
    [call] = read_assertions(parse_tests("assert f(root=tree_node([1, None]), k=2) == 3"), ["tree_node"])
    assert (call.named, call.builders) == ({"root": [1, None], "k": 2}, {"root": "tree_node"})


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("-inf", -math.inf),
        ("2 * math.pi * 5 ** 2", 2 * math.pi * 5**2),
        ("131 + 1001", 1132),
        ("0.5 - 1.5j", 0.5 - 1.5j),
        ("set(['a', 'b'])", {"a", "b"}),
        ("Counter({2: 3})", Counter({2: 3})),
        ("dict(a=1)", {"a": 1}),
        ("complex(1, -1)", 1 - 1j),
        (" [(1, 'x'), {}] ", [(1, "x"), {}]),
    ],
)
def test_expressions_that_stand_for_values_are_read(code: str, value: object) -> None:
    assert read_value(code) == value
    assert type(read_value(code)) is type(value)


@pytest.mark.parametrize(
    "code",
    ["f(1)", "open('x')", "lambda: 1", "9 ** 9 ** 9", "'a' * 10 ** 9", "[0] * 10", "{**a}", "1 / 0", "1 +", "a.b"],
)
def test_what_is_no_value_or_too_large_is_refused_unrun(code: str) -> None:
    with pytest.raises(UnreadableTestError):
        read_value(code)


@pytest.mark.parametrize(
    "code",
    [
        "assert f(3) + f(3) == 6",
        "assert f(3)",
        "assert f(3) < 4",
        "assert 1 < f(3) == 4",
        "try:\n    f(1)\nexcept ValueError:\n    pass",
        "x = f(1)",
        "assert f(g(1)) == 2",
        "assert f(*[1]) == 2",
        "assert (",
        "",
    ],
)
def test_a_test_that_is_not_a_call_and_a_value_is_refused(code: str) -> None:
    with pytest.raises(UnreadableTestError):
        read_assertions(parse_tests(code))
