"""What honest programs return that equals plain data without being it: right or wrong as by EvalPlus' own check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from evalplus.eval import untrusted_check

from codetune.benchmark.judge import judge
from codetune.records import Solution
from tests.benchmark.tasks import problem
from tests.sandbox.tiers import each_tier

# what is returned, and what is expected
RETURNS = [
    ("collections.UserList([1])", [1]),
    ("collections.UserList([0.1 + 0.2])", [0.3]),
    ("collections.UserString('a')", "a"),
    ("collections.ChainMap({'a': 1})", {"a": 1}),
    ("types.MappingProxyType({'a': 1})", {"a": 1}),
    ("{1: 2}.keys()", {1}),
    ("{1: 2}.keys()", [1]),
    ("{1: 2}.values()", [2]),
    ("memoryview(b'a')", b"a"),
    ("collections.deque([1])", [1]),
    ("sympy.true", True),
    ("sympy.true", 1),
    ("sympy.Integer(2)", 2),
    ("sympy.Integer(2)", 2.0),
    ("sympy.Rational(1, 2)", 0.5),
    ("[sympy.Rational(1, 2)]", [0.5]),
    ("sympy.Float(0.5)", 0.5),
    ("sympy.Float(0.1) + sympy.Float(0.2)", 0.3),
    ("[sympy.pi]", [3.141592653589793]),
    ("numpy.int64(3)", 3),
    ("numpy.float32(0.1)", 0.1),
    ("numpy.array([1])", [1]),
    ("numpy.array([1, 2])", [1, 2]),
    ("fractions.Fraction(1, 2)", 0.5),
    ("complex(1, 0)", 1),
    ("type('S', (list,), {})([0.1 + 0.2])", [0.3]),
    ("range(3)", [0, 1, 2]),
    ("1", True),
    ("2", 2.0),
]
MODULES = re.compile(r"\b(collections|fractions|numpy|sympy|types)\.")

# EvalPlus' process has loaded some of these before its guard, which takes away what they need, and others not.
IMPORTED = ("pandas", "datasets", "pyarrow", "numpy", "sympy", "requests", "asyncio", "subprocess", "nowhere")
IMPORTING = [
    *[f"import {name}\ndef double(x): return 2 * x" for name in IMPORTED],
    "import pandas as pd\ndef double(x): return int(pd.Series([x, x]).sum())",
]
EVALPLUS_CHECK = """
import sys
import evalplus.evaluate
from evalplus.eval import untrusted_check
for program in sys.argv[1:]:
    print(untrusted_check("own", program, [[1]], "double", [2], 0, [1.0])[0])
"""


@pytest.fixture(scope="module")
def evalplus_statuses() -> list[str]:
    command = [sys.executable, "-c", EVALPLUS_CHECK, *IMPORTING]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()


@each_tier(and_none=True)
def test_a_module_can_be_imported_where_it_can_under_the_evalplus_command(
    tier: str, expected: Path, evalplus_statuses: list[str]
) -> None:
    task = problem(base_input=[[1]], plus_input=[])
    solutions = [Solution("Own/0", program, sample) for sample, program in enumerate(IMPORTING)]
    verdicts = sorted(judge([task], solutions, expected, 2, tier), key=lambda verdict: verdict.sample)
    differing = [both for both in zip(verdicts, evalplus_statuses, strict=True) if both[0].base != both[1]]
    assert differing == []
    assert evalplus_statuses == ["pass"] * 8 + ["fail", "pass"]


def test_what_equals_plain_data_is_judged_as_by_evalplus(expected: Path) -> None:
    tasks, solutions, theirs = [], [], []
    for number, (returned, value) in enumerate(RETURNS):
        imports = "".join(f"import {name}\n" for name in MODULES.findall(returned))
        program = f"{imports}def double(x): return {returned}"
        canonical = f"    return {value!r}\n"
        tasks.append(problem(task_id=f"Own/{number}", canonical_solution=canonical, base_input=[[1]], plus_input=[]))
        solutions.append(Solution(f"Own/{number}", program))
        theirs.append(untrusted_check("own", program, [[1]], "double", [value], 0, [1.0])[0])
    verdicts = {verdict.task_id: verdict.base for verdict in judge(tasks, solutions, expected, 2, "none")}
    ours = [verdicts[task.task_id] for task in tasks]
    assert list(zip(RETURNS, ours, strict=True)) == list(zip(RETURNS, theirs, strict=True))
    assert {"pass", "fail"} == set(ours)
