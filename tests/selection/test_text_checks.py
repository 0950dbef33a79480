from __future__ import annotations

import pytest

from tests.selection.test_answer_checks import why

OPEN = "Here it is:\n\n```python\ndef f(x):\n    return x"
JAVA = "```java\nint f(int x) { return x; }\n```"
TASK = "Sort the list [3, 1, 2] in place and print it."


@pytest.mark.parametrize("answer", [OPEN, f"{JAVA}\n\nOutput:\n```\n1 2 3"])
def test_an_answer_that_ends_in_a_code_block_was_cut_off(answer: str) -> None:
    assert why("closed", answer) == "check closed: a code block of the answer is not closed"


@pytest.mark.parametrize(
    "answer", ["No code.", f"{OPEN}\n```", "```python\nx = 1```", f"````\n{JAVA}\n````", "`x` is 1"]
)
def test_an_answer_whose_code_blocks_are_closed_is_whole(answer: str) -> None:
    assert why("closed", answer) is None


@pytest.mark.parametrize(
    ("instruction", "answer", "reason"),
    [
        ("Write a Python function.", JAVA, "the instruction asks for Python, the code is Java"),
        (
            "In PHP or php: echo 1",
            "```js\n1\n```\n```go\n1\n```",
            "the instruction asks for PHP, the code is Go and JavaScript",
        ),
        ("Use C++.", "```python\nx = 1\n```", "the instruction asks for C++, the code is Python"),
    ],
)
def test_code_in_another_language_than_the_one_asked_for_fails(instruction: str, answer: str, reason: str) -> None:
    assert why("language", answer, instruction) == f"check language: {reason}"


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("Write a Java method.", JAVA),
        ("Translate this Python code to Java.", "```rust\n1\n```"),  # two are named
        ("Write a function.", JAVA),
        ("Write a Python function.", "def f(x):\n    return x"),  # not marked
        ("Write a Python script.", f"```bash\npython a.py\n```\n```python\nx = 1\n```\n{JAVA}"),
        ("Write a Python function.", "```bash\npip install numpy\n```"),  # no language of the table
        ("Write TypeScript.", "```javascript\n1\n```"),
        ("Let it go to app.py or python3-dev.", JAVA),
    ],
)
def test_code_in_the_language_asked_for_passes_and_so_does_what_cannot_be_told(instruction: str, answer: str) -> None:
    assert why("language", answer, instruction) is None


@pytest.mark.parametrize("answer", [TASK, f"```\n{TASK}\n```", TASK.replace(" ", "\n  "), TASK[:30]])
def test_an_answer_that_is_most_of_its_instruction_only_repeats_it(answer: str) -> None:
    assert why("repeats", answer, TASK) == "check repeats: the answer only repeats the instruction"


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        (TASK, "a = [3, 1, 2]\na.sort()\nprint(a)"),
        (TASK, "Sort the list"),  # a smaller part of it
        ("Say a b c d", "a b c d"),  # few words
        (TASK, f"{TASK} Here it is: [1, 2, 3]"),
        (TASK, ""),
    ],
)
def test_an_answer_that_says_more_or_little_of_the_instruction_repeats_nothing(instruction: str, answer: str) -> None:
    assert why("repeats", answer, instruction) is None
