from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
from evalplus.sanitize import sanitize as extract
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.benchmark.dependency_slice import without_overwritten
from codetune.benchmark.sanitize import sanitize
from codetune.records import Completion, Solution
from tests.benchmark.answers import LOSING, WHOLE
from tests.benchmark.tasks import PROMPT, problem

Form = type[Solution | Completion]

ANSWER = """Sure, here it is:

```python
import math

def helper(x):
    return x + x

def unrelated(x):
    return math.pi

def double(x):
    return helper(x)

print(double(2))
```
It doubles."""


def test_a_chat_answer_is_reduced_to_the_entry_point_and_what_it_needs() -> None:
    found = sanitize(problem(), Solution("Own/0", ANSWER, 3))
    assert found.solution == Solution(
        "Own/0",
        "import math\ndef helper(x):\n    return x + x\ndef double(x):\n    return helper(x)",
        3,
    )
    assert (found.changed, found.parses) == (True, True)


def test_a_completion_continues_its_prompt() -> None:
    found = sanitize(problem(), Completion("Own/0", "    return x + x\n\nprint(double(1))\n"))
    assert found.solution.solution == f"{PROMPT}\n    return x + x"


FUNCTION = "def double(x):\n    return x + x"
TESTS = "\n".join(f"assert double({n}) == {2 * n}" for n in range(9))


@pytest.mark.parametrize(
    "answer",
    [
        f"Sure!\n```python\n{FUNCTION}\n```\nTests:\n```python\n{TESTS}\n```\nAll pass.",
        f"```python\n{TESTS}\n```\nThe function:\n```python\n{FUNCTION}",  # the last fence is never closed
        f"{FUNCTION}\n```\nTests:\n```\n{TESTS}\n```\n",  # the prompt had opened the first one
        f"1. Like this:\n   ~~~py\n{textwrap.indent(FUNCTION, '   ')}\n   ~~~\n2. Tests:\n   ~~~\n{TESTS}\n   ~~~",
        f"{PROMPT}\n### Response:\n```python\n{FUNCTION}\n```\n```python\n{TESTS}\n```",  # the prompt again
        f"```python\n{FUNCTION}\n```\nOr shorter:\n```python\ndef double(x): return 2 * x\n```\n```\n{TESTS}\n```",
    ],
    ids=["tests longer", "unclosed", "begun inside", "in a list", "prompt repeated", "two versions"],
)
@pytest.mark.parametrize("form", [Solution, Completion])
def test_tests_longer_than_the_function_are_not_taken_for_it(answer: str, form: Form) -> None:
    assert sanitize(problem(), form("Own/0", answer)).solution.solution == FUNCTION


@pytest.mark.parametrize("body", ["    return x + x", "```python\n    return x + x\n```\nDone.", "return x + x\n```\n"])
@pytest.mark.parametrize("form", [Solution, Completion])
def test_a_body_alone_is_the_prompts_body(body: str, form: Form) -> None:
    assert sanitize(problem(), form("Own/0", body)).solution.solution == f"{PROMPT}\n    return x + x"


def doubles(program: str) -> bool:
    names: dict[str, Any] = {}
    try:
        exec(program, names)
        return [names["double"](value) for value in (21, "ab")] == [42, "abab"]
    except (ArithmeticError, AttributeError, LookupError, NameError, SyntaxError, TypeError):
        return False


@pytest.mark.parametrize("manner", [*WHOLE, *LOSING])
@pytest.mark.parametrize("form", [Solution, Completion])
def test_the_program_is_found_in_whatever_manner_a_model_answers(manner: str, form: Form) -> None:
    found = sanitize(problem(), form("Own/0", (WHOLE | LOSING)[manner]))
    assert doubles(found.solution.solution), found.solution.solution
    assert sanitize(problem(), found.solution).solution == found.solution


@pytest.mark.parametrize("manner", WHOLE)
def test_an_answer_from_which_evalplus_extracts_the_program_is_what_evalplus_makes_of_it(manner: str) -> None:
    theirs = extract(WHOLE[manner], "double")
    if doubles(theirs):
        assert sanitize(problem(), Solution("Own/0", WHOLE[manner])).solution.solution == theirs


@pytest.mark.parametrize("manner", LOSING)
def test_what_is_kept_is_the_function_and_its_needs(manner: str) -> None:
    program = sanitize(problem(), Solution("Own/0", LOSING[manner])).solution.solution
    assert not any(left in program for left in ("```", "~~~", "assert", "print(", "This ", "Then"))


def test_a_name_that_the_answer_nowhere_defines_is_no_reason_to_leave_evalplus_result() -> None:
    text = "```python\ndef double(x):\n    return helper(x)\n```\nor\n```python\ndef double(x):\n    return 2 * x\n```"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == extract(text, "double")


@pytest.mark.parametrize(
    "text",
    [ANSWER, FUNCTION, f"{FUNCTION}\n{TESTS}", "double = lambda x: 2 * x\nprint(double(1))", f"x = 1\n{ANSWER}"],
)
def test_code_that_evalplus_can_call_is_what_evalplus_makes_of_it(text: str) -> None:
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == extract(text, "double")


def test_a_function_that_never_returns_stays_as_evalplus_leaves_it() -> None:
    text = "def double(x):\n    print(2 * x)\n"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == extract(text, "double")


STUB = "replaces the stub\n```python\ndef double(x):\n    pass```\n"
HELPED = "def add(x):\n    return x + x\n\ndouble = add\n"


@pytest.mark.parametrize(
    ("program", "rest"),
    [
        (HELPED, STUB),
        (f"{FUNCTION}\n", STUB),
        (f"{FUNCTION}\n", "Not so:\n```python\ntotal = 0\ndef double(x):\n    return False```\n"),
    ],
    ids=["by another name", "a function", "a wrong way"],
)
def test_a_later_stub_with_a_fence_on_its_last_line_replaces_nothing(program: str, rest: str) -> None:
    answer = Solution("Own/0", f"```python\n{program}```\n{rest}")
    found = sanitize(problem(), answer).solution
    assert doubles(found.solution), found.solution
    assert "pass" not in found.solution
    assert "total" not in found.solution
    assert sanitize(problem(), found).solution == found


PRIME = problem(prompt="def is_prime(n):\n", entry_point="is_prime")
EARLY = "if n < 2:\n        return False\n    for d in range(2, n):\n        if n % d == 0:\n"
EARLY += "            return False\n    return True"


@pytest.mark.parametrize("body", [EARLY, f"```python\n{EARLY}\n```\nDone."])
@pytest.mark.parametrize("form", [Solution, Completion])
def test_a_body_that_begins_with_an_early_return_is_kept_whole(body: str, form: Form) -> None:
    assert sanitize(PRIME, form("Own/0", body)).solution.solution == f"def is_prime(n):\n\n    {EARLY}"


USES_ADD = "def double(x):\n    return add(x)"


def test_a_module_taken_whole_is_no_reason_to_lose_a_helper() -> None:
    text = f"```python\ndef add(x):\n    return x + x\n```\nand\n```python\nfrom math import *\n\n{USES_ADD}\n```"
    assert doubles(sanitize(problem(), Solution("Own/0", text)).solution.solution)


def test_a_star_import_alone_changes_nothing() -> None:
    text = "from math import *\ndef double(x):\n    return floor(x) + ceil(x)\n"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == extract(text, "double")


@pytest.mark.parametrize(
    "asking",
    ["x = int(input('x? '))", "import sys\nx = int(sys.stdin.readline())", "import sys\nx = sys.argv[1]"],
)
def test_a_question_for_what_an_argument_is_called_is_not_kept(asking: str) -> None:
    text = f"```python\n{FUNCTION}\n\n{asking}\nprint(double(x))\n```"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == FUNCTION


IMPLEMENTED = "def add(x):\n    return x + x\n"


@pytest.mark.parametrize(
    ("filling", "call"),
    [
        ("TABLE = {}\nTABLE['a'] = add", "TABLE['a'](x)"),
        ("TABLE = [None] * 3\nfor index in range(3):\n    if True:\n        TABLE[index] = add", "TABLE[2](x)"),
        ("TABLE = []\nTABLE.append(add)", "TABLE[0](x)"),
        ("TABLE = [add, None]\ndel TABLE[1]", "TABLE[-1](x)"),
        ("LAST = 1\nLAST -= 1\nTABLE = [add, None]", "TABLE[LAST](x)"),
        ("LAST = 1\nfor found in (5, 0):\n    LAST = min(LAST, found)\nTABLE = [add, None]", "TABLE[LAST](x)"),
        ("class Table:\n    pass\nTable.add = staticmethod(add)", "Table.add(x)"),
        ("found = None\ndef begin():\n    global found\n    found = add\nbegin()", "found(x)"),
        ("TABLE = {}\ndef begin():\n    for name in 'ab':\n        TABLE[name] = add\nbegin()", "TABLE['a'](x)"),
    ],
)
def test_what_fills_data_of_the_module_is_kept(filling: str, call: str) -> None:
    text = f"```python\n{IMPLEMENTED}\n{filling}\n\ndef double(x):\n    return {call}\n\nprint(double(2))\n```"
    assert not doubles(extract(text, "double"))
    found = sanitize(problem(), Solution("Own/0", text)).solution
    assert doubles(found.solution), found.solution
    assert "print" not in found.solution
    assert sanitize(problem(), found).solution == found


def test_an_attribute_that_is_set_behind_the_function_is_kept() -> None:
    text = f"{IMPLEMENTED}\ndef double(x):\n    return double.add(x)\n\ndouble.add = add\nprint(double(2))\n"
    assert doubles(sanitize(problem(), Solution("Own/0", text)).solution.solution)


@pytest.mark.parametrize(
    "behind", ["assert double(1) == 2\nSEEN.clear()", "SEEN.append(double(2))", "print(SEEN)\nSEEN.append(1)"]
)
def test_what_fills_data_behind_the_first_test_is_not_needed(behind: str) -> None:
    text = f"SEEN = []\ndef double(x):\n    SEEN.append(x)\n    return x + x\n{behind}\n"
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution == extract(text, "double")


def test_a_body_with_a_variable_of_its_functions_name_stays_a_body() -> None:
    body = "\n    double = []\n    for _ in range(2):\n        double.append(x)\n    return double[0] + double[1]\n"
    found = sanitize(problem(), Completion("Own/0", body)).solution.solution
    assert found == extract(f"{PROMPT}\n{body}", "double")


SECOND = "def double(x):\n    return x * 2"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{FUNCTION}\n\n{SECOND}", SECOND),
        (f"```python\n{FUNCTION}\nprint(double(1))\n\n{SECOND}\n```", SECOND),
        (f"{FUNCTION}\nfound = double(1)\n{SECOND}\nprint(found)", SECOND),
        (f"{FUNCTION}\n\n{FUNCTION}\n\n{SECOND}", SECOND),
        (f"{SECOND}\n\ndef double(x):\n    pass", SECOND),  # a stub
        (f"{FUNCTION} + 0\n\n{FUNCTION}", f"{FUNCTION} + 0"),  # a copy that the limit of tokens has cut off
        (f"```python\n{FUNCTION}\n```\nOr:\n```python\n{SECOND}\n```", FUNCTION),  # two answers
    ],
)
@pytest.mark.parametrize("form", [Solution, Completion])
def test_of_a_function_that_a_program_defines_twice_the_last_counts(text: str, kept: str, form: Form) -> None:
    found = sanitize(problem(), form("Own/0", text)).solution
    assert found.solution == kept
    assert sanitize(problem(), found).solution == found


@pytest.mark.parametrize(
    "between", ["first = double", "first = add(double)", "class A:\n    f = double", "def g(f=double):\n    return f"]
)
def test_a_first_version_that_is_used_stays(between: str) -> None:
    text = f"{FUNCTION}\n{between}\ndef double(x):\n    return first(A, g, x)"
    assert FUNCTION in without_overwritten(text)


@pytest.mark.parametrize(
    "text",
    [
        "x1 = 1\n" * 300 + ")",
        "".join(f"def f{n}(x):\n    return x\n\n" for n in range(150)) + ")",
        "x = 1" + "</s>" * 8_000 + "y",
        "```" + " " * 20_000 + "y",
        "    return x" + "```" * 9000 + "y",
        "TABLE = {}\ndef fill(x):\n    TABLE[x] = x\n" + "fill(1)\n" * 300 + "def double(x):\n    return TABLE[x]",
        "@cache\ndef f(x):\n    return x\n\n" * 150,
        "    x = 1\n" * 300 + ")" + "\n    y = 1" * 300,
    ],
)
def test_a_long_text_takes_no_time_by_its_square(text: str) -> None:
    began = time.process_time()
    sanitize(problem(), Solution("Own/0", text))
    assert time.process_time() - began < 5


def test_a_text_without_code_comes_back_and_does_not_parse() -> None:
    found = sanitize(problem(), Solution("Own/0", "I cannot do that\nSorry, no."))
    assert (found.solution.solution, found.parses) == ("I cannot do that", False)


@pytest.mark.parametrize(
    "text",
    [
        "def double(x):\n\0 return x",
        "return '\ud800'\n",
        "-" * 100_000 + "1\n2",
        "",
        "def double(x):\n    return " + "-" * 900 + "x",
        "T = {}\nT[0] = " + "1 + " * 900 + "1\ndef double(x):\n    return T[0]",
        "T = {}\n" + "T[0] = 1\n" * 30 + "def double(x):\n    return T[0]",
        "def double(x):\n    return " + "1 + " * 900 + "1```",
    ],
)
def test_no_text_can_break_it(text: str) -> None:
    assert sanitize(problem(), Solution("Own/0", text)).solution.solution is not None


@pytest.mark.filterwarnings("error")
def test_warnings_about_the_models_code_are_not_ours() -> None:
    assert sanitize(problem(), Solution("Own/0", "def double(x):\n    return '\\d' is 3")).parses


lines = st.sampled_from(
    [
        *ANSWER.split("\n"),
        "",
        "x = 1",
        "~~~",
        "assert double(2) == 4",
        "class A:",
        "    def double(self): return 1",
        "    return x",
        "    if x:",
        "    return helper(x)```",
        "    return helper(x)</s>",
        "> ```",
        "> def double(x):",
        "<code>",
        "@helper",
        "@staticmethod",
        "try:",
        "    import helper",
        "except ImportError: helper = None",
        "one, helper = 1, len",
        "def helper(x): x.append(1)",
        "\tdef double(x):\r",
        ")",
        "'",
        "```",
        "double = helper",
        "double = None",
        "    pass```",
        "TABLE = {}",
        "TABLE['a'] = helper",
        "TABLE.clear()",
        "TABLE += 1",
        "for x in TABLE: TABLE[x] = double",
        "def fill(): TABLE['b'] = 1",
        "fill()",
        "double.table = TABLE",
        "x = int(input())",
        "from math import *",
        "def double(x): return TABLE",
        "def double(x): return helper(TABLE, x)",
    ]
)


@settings(max_examples=800, deadline=None)
@given(st.lists(lines, max_size=14), st.sampled_from([Solution, Completion]))
def test_sanitizing_twice_changes_nothing(text: list[str], form: Form) -> None:
    once = sanitize(problem(), form("Own/0", "\n".join(text)))
    again = sanitize(problem(), once.solution)
    assert (again.solution, again.changed) == (once.solution, False)


def test_its_import_says_nothing_and_loads_no_torch() -> None:
    program = "import codetune.benchmark.sanitize, codetune.benchmark.judge, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
