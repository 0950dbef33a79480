from __future__ import annotations

import ast

import pytest

from codetune.benchmark.dependency_slice import (
    changed_names,
    defined_names,
    defines,
    dependency_slice,
    reads_input,
    undefined_names,
)

PROGRAM = """from __future__ import annotations
import os, math as m
from typing import *
first, (second, *rest) = 1, (2, 3)
@staticmethod  # a comment
def unused(x): return os
@unused
def helper(x):  # changes x
    x.append(second)
for index in range(3): limit = index
def double(x):
    helper(x); return [limit for limit in x] + [m.pi, limit]
if __name__ == "__main__":
    m = second = 5
def double(x): return 2 * x
double([])
"""


def test_a_statement_is_kept_for_a_name_that_it_binds_and_the_first_version_counts() -> None:
    lines = PROGRAM.split("\n")
    # os, which `unused` loads, comes with it: it decorates the helper
    assert dependency_slice(PROGRAM, "double").split("\n") == lines[:12]


def test_an_import_goes_first_wherever_it_stood() -> None:
    assert dependency_slice("@cache\ndef f(x): return x\nfrom functools import cache", "f") == (
        "from functools import cache\n@cache\ndef f(x): return x"
    )


def test_a_stub_gives_way_to_what_returns_or_yields() -> None:
    assert dependency_slice("def f(x): pass\ndef f(x): yield x", "f") == "def f(x): yield x"
    assert dependency_slice("def f(x): pass\ndef f(x): print(x)", "f") == "def f(x): print(x)"


@pytest.mark.parametrize("code", ["x = 1", "f(", "\0", "return f", ""])
def test_there_is_no_slice_where_nothing_defines_the_entry_point(code: str) -> None:
    assert dependency_slice(code, "f") == ""
    assert not defines(code, "f")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(x): return g(x)", {"g"}),
        ("def f(x): return max(x)", set()),
        ("def f(g): return g(1)", set()),
        ("def f(x: List) -> Any: return x", {"List", "Any"}),
        ("class A(B):\n    y = z\n    def f(self): return y", {"B", "z", "y"}),
        ("def f(x):\n    import g\n    return lambda: g.h", set()),
        ("f = [a for a in b if a]", {"b"}),
        ("from m import *\ndef f(x): return g(x)", {"g"}),
        ("with a as b: c = d", {"a", "d"}),
        ("return f", {"f"}),
    ],
)
def test_names_are_undefined_that_are_loaded_and_never_bound(code: str, found: set[str]) -> None:
    assert undefined_names(code) == found


def test_names_are_defined_by_every_form_of_binding() -> None:
    assert defined_names(PROGRAM) >= {"os", "m", "*", "first", "second", "rest", "unused", "helper", "index", "limit"}
    assert defined_names("try:\n    import a.b\nexcept E:\n    a = None\nelse:\n    class C: d = 1") == {"a", "C"}
    assert defined_names("def f():\n    g = 1\n[h for h in ()]") == {"f"}


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("table[0] = 1", {"table"}),
        ("table.rows[0].name = 1", {"table"}),
        ("del table[0]", {"table"}),
        ("table.append(1)", {"table"}),
        ("count += 1", {"count"}),
        ("for n in (1, 2): table[n] = n", {"table", "n"}),
        ("fill()", {"table", "total"}),
        ("table = [1]", set()),
        ("shown(table)", set()),
        ("json.loads('1')", set()),
        ("table.append(input())", set()),
        ("for n in (1, 2): print(table[n])", set()),
        ("f.table = {}", {"f"}),
        ("f.append(1)", set()),
    ],
)
def test_a_statement_changes_the_values_that_it_sets(statement: str, names: set[str]) -> None:
    before = "import json\ndef fill():\n    global total\n    row = {}\n    row[1] = total = 2\n    table[0] = row\n"
    tree = ast.parse(f"{before}{statement}")
    assert changed_names(tree.body, "f").get(tree.body[-1], set()) == names


@pytest.mark.parametrize("test", ["assert table", "print(table)", "x = f(1)"])
def test_nothing_is_changed_behind_a_test(test: str) -> None:
    assert changed_names(ast.parse(f"{test}\ntable[0] = 1").body, "f") == {}


def test_input_is_read_when_a_program_is_loaded_or_when_it_is_called() -> None:
    assert reads_input("n = int(input())")
    assert reads_input("import sys\nfor line in sys.stdin: pass")
    assert not reads_input("def f(): return input()")
