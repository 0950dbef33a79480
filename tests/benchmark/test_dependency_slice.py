from __future__ import annotations

import pytest

from codetune.benchmark.dependency_slice import defines, names_defined, names_lacking, needed_part

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
    assert needed_part(PROGRAM, "double").split("\n") == lines[:12]


def test_an_import_goes_first_wherever_it_stood() -> None:
    assert needed_part("@cache\ndef f(x): return x\nfrom functools import cache", "f") == (
        "from functools import cache\n@cache\ndef f(x): return x"
    )


def test_a_stub_gives_way_to_what_returns_or_yields() -> None:
    assert needed_part("def f(x): pass\ndef f(x): yield x", "f") == "def f(x): yield x"
    assert needed_part("def f(x): pass\ndef f(x): print(x)", "f") == "def f(x): print(x)"


@pytest.mark.parametrize("code", ["x = 1", "f(", "\0", "return f", ""])
def test_there_is_no_part_where_nothing_defines_the_entry_point(code: str) -> None:
    assert needed_part(code, "f") == ""
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
def test_names_are_lacking_that_are_loaded_and_bound_by_nobody(code: str, found: set[str]) -> None:
    assert names_lacking(code) == found


def test_names_are_defined_by_every_form_of_binding() -> None:
    assert names_defined(PROGRAM) >= {"os", "m", "*", "first", "second", "rest", "unused", "helper", "index", "limit"}
    assert names_defined("try:\n    import a.b\nexcept E:\n    a = None\nelse:\n    class C: d = 1") == {"a", "C"}
    assert names_defined("def f():\n    g = 1\n[h for h in ()]") == {"f"}
