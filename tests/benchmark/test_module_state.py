from __future__ import annotations

import ast

import pytest

from codetune.benchmark.module_state import asks_for_input, filled_names


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
def test_a_statement_fills_what_it_changes(statement: str, names: set[str]) -> None:
    before = "import json\ndef fill():\n    global total\n    row = {}\n    row[1] = total = 2\n    table[0] = row\n"
    tree = ast.parse(f"{before}{statement}")
    assert filled_names(tree.body, "f").get(tree.body[-1], set()) == names


@pytest.mark.parametrize("test", ["assert table", "print(table)", "x = f(1)"])
def test_nothing_is_filled_behind_a_test(test: str) -> None:
    assert filled_names(ast.parse(f"{test}\ntable[0] = 1").body, "f") == {}


def test_input_is_asked_for_when_a_program_is_loaded_or_when_it_is_called() -> None:
    assert asks_for_input(ast.parse("n = int(input())").body)
    assert asks_for_input(ast.parse("import sys\nfor line in sys.stdin: pass").body)
    assert not asks_for_input(ast.parse("def f(): return input()").body)
