from __future__ import annotations

import pytest

from codetune.records import Example, Message, content_id
from codetune.selection.answer_checks import example_programs, failed_checks, find_program

CODE = "def f(x):\n    return x + 1\n"
BROKEN = "def f(x):\nreturn x\n"
FENCE_IN_DOCSTRING = 'def f(x):\n    """Adds one.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'


def example(answer: str, instruction: str = "Write a function.") -> Example:
    messages = (Message("user", instruction), Message("assistant", answer))
    return Example(content_id(messages), messages, "")


def why(name: str, answer: str, instruction: str = "Write a function.") -> str | None:
    found = dict(failed_checks([example(answer, instruction)], [name]))
    return next(iter(found.values()), None)


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (f"Here it is:\n```python\n{CODE}```\nIt adds one.", CODE),
        (f"```py\nx = 1\n```\nand\n```Python\n{CODE}```", CODE),  # the longest block
        ("1. So:\n   ```python\n   x = 1\n   y = 2\n   ```", "x = 1\ny = 2\n"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        (f"```python\n{FENCE_IN_DOCSTRING}```", FENCE_IN_DOCSTRING),
        ("   ```python\n   x = 1\n```", "x = 1\n"),
        (CODE, CODE),
        (f"# Adds one.\nimport math\n{CODE}", f"# Adds one.\nimport math\n{CODE}"),
        (BROKEN, BROKEN),
    ],
)
def test_the_program_is_the_longest_marked_block_or_the_whole_text(answer: str, program: str) -> None:
    assert find_program(answer) == program


@pytest.mark.parametrize(
    "answer",
    [
        "The result is 4.",
        "```javascript\nfunction f(x) { return x }\n```",
        f"```\n{CODE}```",  # not marked
        "```python\n>>> f(1)\n2\n```",  # a session
        "```python\n# Call it:\n\n>>> f(1)\n2\n```",
        f"The code has a fault. Here is a better one:\n\n{CODE}",  # prose first
        f"{CODE}\nThis function adds one to the number.\n",  # prose behind it
        "def f(start: Int): List[Int] = {\n  start :: f(start + 1)\n}",  # Scala
        "def f(x)\n  x + 1\nend",  # Ruby
        "#include <string>\nclass A : public B {\n public:\n};\nclass C :\n",  # C++
        "import Foundation\nlet x = 1",  # Swift
        "x" * 1_000_001,
    ],
)
def test_an_answer_that_is_not_evidently_python_has_no_program(answer: str) -> None:
    assert find_program(answer) is None
    assert why("parses", answer) is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (BROKEN, "check parses: line 2: expected an indented block"),
        ("```python\nprint 'hello'\n```", "check parses: line 1: Missing parentheses in call to 'print'"),
        ("```python\nx = '\0'\n```", "check parses: "),
        (f"```python\nx = {'(' * 3000}1\n```", "check parses: "),
        (f"```python\nx = {'-' * 100_000}1\n```", "check parses: it is nested too deeply"),
    ],
)
def test_python_that_its_own_parser_refuses_is_told_with_its_line(answer: str, told: str) -> None:
    found = why("parses", answer)
    assert found is not None
    assert found.startswith(told)


def test_a_warning_of_the_parser_is_no_fault() -> None:
    assert why("parses", '```python\nx = "\\d" is 1\n```') is None


@pytest.mark.parametrize(
    ("answer", "unknown"),
    [
        ("def f(x):\n    return math.sqrt(x)\n", "math"),
        ("def f(x):\n    return total + g(x)\n", "g, total"),
        ("class A:\n    def f():\n        self.x = 1\n", "self"),
        ("def f(x):\n    return [y for z in x]\n", "y"),
    ],
)
def test_a_name_that_nothing_defines_is_told(answer: str, unknown: str) -> None:
    assert why("names", answer) == f"check names: nothing defines {unknown}"


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ("import math\ndef f(x):\n    return math.sqrt(x) if __name__ else Exception\n", ""),
        ("def f(x):\n    return g(x)\ndef g(x):\n    return x\n", ""),
        ("def f():\n    global a\n    a = 1\ndef g():\n    return a\n", ""),
        ("class A:\n    b = 1\n    c = b\n    def d(self):\n        return __class__\n", ""),
        ("def f(x):\n    try:\n        pass\n    except OSError as e:\n        print(e)\n", ""),
        ("def f(x):\n    return [a for a in x if a]\n", ""),
        ("from math import *\ndef f(x):\n    return sqrt(x)\n", ""),
        ("def f(x):\n    return Node(x)\n", "Given class Node, write a function."),
        ("```python\nimport os\n```\nand\n```python\ndef f(x):\n    return os.path.join(x)\n```", ""),
        (BROKEN, ""),  # another check's
        ("```python\nx = 1\nreturn x\n```", ""),  # no symbol table
        ("class A:\n    name = __module__ + __qualname__\ndef f():\n    return __builtins__, WindowsError\n", ""),
    ],
)
def test_a_name_that_program_python_instruction_or_another_block_defines_is_known(
    answer: str, instruction: str
) -> None:
    assert why("names", answer, instruction) is None


def test_a_row_is_told_by_the_first_check_that_it_fails() -> None:
    rows = [example(BROKEN), example("def f(x):\n    return y\n"), example(CODE)]
    found = list(failed_checks(rows, ["names", "parses"]))
    assert [row for row, _ in found] == [rows[0].id, rows[1].id]
    assert [reason.partition(":")[0] for _, reason in found] == ["check parses", "check names"]


DOCTEST = 'def f(x):\n    """Adds one.\n\n    >>> f(1)\n    2\n    """\n    return x + 1\n'


@pytest.mark.parametrize(
    ("answer", "instruction", "sessions", "assertions"),
    [
        (DOCTEST, "", ("Adds one.\n\n>>> f(1)\n2",), ()),
        (CODE, "Add one.\n>>> f(1)\n2\n", (">>> f(1)\n2\n",), ()),
        (CODE, "```\n>>> f(1)\n2\n```", (">>> f(1)\n2\n",), ()),
        (CODE, "It must hold that\n    assert f(1) == 2\n    assert f(2) == g(3)\n", (), ("assert f(1) == 2",)),
        (CODE, ">>> f(1)\n2\nFix it.\n", None, None),
        (CODE, ">>> f(1)\n2\nReturn the number plus one\n", None, None),
        (CODE, ">>> f(1)\n2\n>>> f(2)\n3\n", (">>> f(1)\n2\n\n>>> f(2)\n3\n",), ()),
        (CODE, ">>> f(unknown)\n2\n", None, None),
        (CODE, ">>> g(1)\n2\n", None, None),
        (CODE, ">>>f(1)\n2\n", None, None),
        (BROKEN, "assert f(1) == 2", None, None),
        (CODE, "", None, None),
    ],
)
def test_examples_are_those_of_the_docstrings_and_those_of_the_instruction_that_call_the_program(
    answer: str, instruction: str, sessions: tuple[str, ...] | None, assertions: tuple[str, ...] | None
) -> None:
    found = [(one.sessions, one.assertions) for one in example_programs([example(answer, instruction)])]
    assert found == ([] if sessions is None else [(sessions, assertions)])
