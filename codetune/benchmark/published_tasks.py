"""Rows of published benchmarks that are not in EvalPlus' format -> tasks as EvalPlus has them: a prompt, a program that
solves it, calls, and the values that the calls must return.

- HumanEval Pro and MBPP Pro (Yu et al. 2024, arXiv 2412.21199): a task of HumanEval or MBPP, and a second one whose
  solution calls that of the first. The program solves both; the second function is called.
- CRUXEval, output prediction (Gu et al. 2024, arXiv 2401.03065): what does this call return? The program is a function
  without arguments that returns the predicted value; the function of the task is not beside it.
- LeetCodeDataset (Xia et al. 2025, arXiv 2504.14655): a class `Solution`, whose method is called, and a date.

A task whose test cannot be taken apart (`assertions.py`), or whose packages are not here, is left out with the reason.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.benchmark.assertions import AssertedCall, UnreadableTestError, parse_tests, read_assertions, read_value
from codetune.benchmark.evalplus_format import TASKS_FORMAT, JsonRow, read_rows, require_new_task, text_of
from codetune.data.files import data_suffix, read_file_rows
from codetune.data.thinking import without_thinking
from codetune.errors import DataError
from codetune.records import Completion, Problem, Solution
from codetune.user_files import require_plain_file

PREDICTION = "predicted_output"  # the function of a CRUXEval program
BUILDERS = ("list_node", "tree_node")  # of LeetCodeDataset's preludes: a list -> a linked list, a tree
DATE = re.compile(r"\d{4}-\d\d-\d\d")
FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TaskFormat:
    """A format that is known by the keys of its rows. `read` raises DataError for a row that is damaged, and
    UnreadableTestError for a task that is left out."""

    keys: frozenset[str]
    task_id: Callable[[str, JsonRow], str]
    read: Callable[[str, JsonRow], Problem]


def read_published(file: Path) -> tuple[list[Problem], dict[str, str]] | None:
    """The tasks of a file, and the ids of those that are left out, each with the reason. None where its first row is of
    none of these formats. Raises DataError for an unreadable file, a damaged row, a task that stands there twice, and a
    file of which no task can be run."""
    known = _format_of(file)
    if known is None:
        return None
    problems: dict[str, Problem] = {}
    left_out: dict[str, str] = {}
    for position, row in _file_rows(file):
        require_new_task(position, task_id := known.task_id(position, row), problems.keys() | left_out.keys())
        try:
            problems[task_id] = known.read(position, row)
        except UnreadableTestError as why:
            left_out[task_id] = str(why)
    if not problems:
        task_id, reason = next(iter(left_out.items()))
        raise DataError(
            f"{file}: none of its {len(left_out)} tasks can be run; {task_id} is the first: {reason}. Expected: tests "
            "that assert what calls return. Name another file."
        )
    return list(problems.values()), left_out


def is_published(file: Path) -> bool:
    """Whether a file holds tasks in one of these formats. Raises DataError for an unreadable file."""
    return _format_of(file) is not None


def _format_of(file: Path) -> TaskFormat | None:
    _, first = next(_file_rows(file), ("", {}))
    return next((known for known in TASK_FORMATS if known.keys <= first.keys()), None)


def _file_rows(file: Path) -> Iterator[tuple[str, JsonRow]]:
    """The rows of a JSONL, of a JSON array or of a table, with their places."""
    if data_suffix(file) not in (".json", ".json.gz", ".parquet"):
        yield from read_rows(file, TASKS_FORMAT)
        return
    require_plain_file(file)
    for row in read_file_rows(file, str(file), lambda names: names):
        if not isinstance(row.value, dict):
            raise DataError(f"{row.at}: not an object with keys. Expected: one task a row. Fix the row.")
        yield row.at, row.value


def pro_instruction(problem: Problem) -> str:
    """The user turn for HumanEval Pro and MBPP Pro."""
    return (
        f"Solve both problems below in Python. The solution of the second, `{problem.entry_point}`, calls that of the "
        "first. Answer with one Markdown code block that holds both functions and the imports they need.\n\n"
        f"```python\n{problem.prompt.strip()}\n```"
    )


def leetcode_instruction(problem: Problem) -> str:
    """The user turn for LeetCodeDataset."""
    return (
        "Write the Python class `Solution` that solves the task below, with the method that the task begins. Answer "
        "with one Markdown code block that holds the whole class and the imports it needs.\n\n"
        f"```python\n{problem.prompt.strip()}\n```"
    )


def prediction_instruction(problem: Problem) -> str:
    """The user turn for CRUXEval."""
    code, _, assertion = problem.prompt.rstrip().rpartition("\n")
    return (
        "What does the call in the last line return? Complete the assertion with the value as a Python literal. Answer "
        f"with one Markdown code block that holds only the whole assertion.\n\n```python\n{code}\n{assertion} ...\n```"
    )


def prediction_program(problem: Problem, sample: Completion | Solution) -> str:
    """The program of a predicted output: of a value alone, of an assertion, or of a fenced block with one of them. A
    text that is neither is returned as it is, and fails when it is judged; so does one that calls the function of the
    task. Idempotent."""
    text = sample.completion if isinstance(sample, Completion) else without_thinking(sample.solution)
    if text.startswith(f"def {PREDICTION}():"):
        return text
    blocks = [block.strip() for block in FENCED.findall(text)]
    for candidate in (*blocks, text.strip(), *text.strip().split("\n")[:1]):
        value = _predicted_value(candidate)
        if value is not None:
            return f"def {PREDICTION}():\n    return (\n{value}\n    )\n"
    return text


def _predicted_value(text: str) -> str | None:
    """The value in `value`, `== value`, `f(1) == value` or `assert f(1) == value`, as it is written."""
    text = text.removeprefix("assert ").strip().removeprefix("==").strip()
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and isinstance(node.ops[0], ast.Eq):
        return ast.get_source_segment(text, node.comparators[0])
    return text


def _read_prediction(position: str, row: JsonRow) -> Problem:
    code, call, output = (text_of(position, row, key) for key in ("code", "input", "output"))
    return Problem(
        task_id=_prediction_id(position, row),
        prompt=f"{code.rstrip()}\n\n# The same call with the value that it returns, as a literal:\nassert f({call}) ==",
        entry_point=PREDICTION,
        canonical_solution=f" {output}",
        base_input=[[]],
        plus_input=[],
        atol=0,
        stated=[read_value(output)],
        statements=[code],
    )


def _prediction_id(position: str, row: JsonRow) -> str:
    return f"CRUXEval/{text_of(position, row, 'id')}"


def _read_pro(position: str, row: JsonRow) -> Problem:
    keys = ("raw_problem", "raw_solution", "new_problem", "new_solution", "test_code")
    raw, raw_solution, new, new_solution, tests = (text_of(position, row, key) for key in keys)
    calls = read_assertions([node for node in parse_tests(tests) if not isinstance(node, ast.Import | ast.ImportFrom)])
    return Problem(
        task_id=_pro_id(position, row),
        prompt=f'"""Solve both problems. The second one, whose solution calls that of the first:\n\n'
        f'{_in_docstring(new.strip())}\n\nThe first one follows.\n"""\n{raw}',
        entry_point=_one_function(calls),
        canonical_solution=raw_solution + new + new_solution,
        base_input=[_positional(call) for call in calls],
        plus_input=[],
        atol=0,
        stated=[call.expected for call in calls],
        is_close=_is_close(calls),
        statements=[raw, new],
    )


def _pro_id(position: str, row: JsonRow) -> str:
    """The id of a task of HumanEval Pro or MBPP Pro, whose rows have the same keys: problems of MBPP are comments,
    those of HumanEval docstrings."""
    benchmark = "MbppPro" if text_of(position, row, "raw_problem").lstrip().startswith("#") else "HumanEvalPro"
    return f"{benchmark}/{row['id']}"


def _positional(call: AssertedCall) -> list[object]:
    if call.named:
        raise UnreadableTestError(f"{call.function} is called with named arguments")
    return list(call.positional)


def _one_function(calls: Sequence[AssertedCall]) -> str:
    names = sorted({call.function for call in calls})
    if len(names) > 1 or not names[0].isidentifier():
        raise UnreadableTestError(f"calls of {', '.join(names)}")
    return names[0]


def _is_close(calls: Sequence[AssertedCall]) -> bool:
    kinds = {call.is_close for call in calls}
    if len(kinds) > 1:
        raise UnreadableTestError("some of its assertions compare by ==, some by math.isclose")
    return kinds.pop()


def _read_leetcode(position: str, row: JsonRow) -> Problem:
    keys = ("problem_description", "starter_code", "prompt", "completion", "entry_point", "test")
    description, starter, prelude, solution, method, tests = (text_of(position, row, key) for key in keys)
    _require_packages(prelude)
    calls = read_assertions(_statements_of_check(tests), BUILDERS)
    return Problem(
        task_id=_leetcode_id(position, row),
        prompt=f'"""\n{_in_docstring(description.strip())}\n\nBegin with:\n\n{_in_docstring(starter.strip())}\n"""\n',
        entry_point="Solution",
        canonical_solution=solution,
        base_input=[[*call.positional, *call.named.values()] for call in calls],
        plus_input=[],
        atol=0,
        stated=[call.expected for call in calls],
        is_close=_is_close(calls),
        statements=[description],
        prelude=f"{prelude}\n",
        callee=_callee(method, calls),
        date=_date(row),
    )


def _leetcode_id(position: str, row: JsonRow) -> str:
    return f"LeetCode/{text_of(position, row, 'task_id')}"


def _statements_of_check(tests: str) -> list[ast.stmt]:
    match parse_tests(tests):
        case [ast.FunctionDef(name="check", body=body)]:
            return body
    raise UnreadableTestError("no function check")


def _callee(method: str, calls: Sequence[AssertedCall]) -> str:
    """The method of one instance, as the published tests call it, with the same names for the arguments."""
    forms = {(len(call.positional), *call.named, *sorted((call.builders or {}).items())) for call in calls}
    if len(forms) > 1 or {call.function for call in calls} != {"candidate"}:
        raise UnreadableTestError("its assertions do not call one function in one way")
    first = calls[0]
    places = [*map(str, range(len(first.positional))), *first.named]
    built = [f"{(first.builders or {}).get(place, '')}(arguments[{index}])" for index, place in enumerate(places)]
    passed = [value if place.isdigit() else f"{place}={value}" for place, value in zip(places, built, strict=True)]
    return f"(lambda method: lambda *arguments: method({', '.join(passed)}))({method})"


def _require_packages(prelude: str) -> None:
    """Raises UnreadableTestError for a package that programs are promised and that is not installed."""
    for node in parse_tests(prelude):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                raise UnreadableTestError(f"the package {name} is not installed")


def _date(row: JsonRow) -> str:
    found = DATE.match(str(row.get("estimated_date", "")))
    return found[0] if found else ""


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


TASK_FORMATS = (
    TaskFormat(frozenset({"code", "input", "output", "id"}), _prediction_id, _read_prediction),
    TaskFormat(frozenset({"raw_problem", "new_problem", "test_code", "id"}), _pro_id, _read_pro),
    TaskFormat(frozenset({"starter_code", "test", "entry_point", "task_id"}), _leetcode_id, _read_leetcode),
)
