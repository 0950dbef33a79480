from __future__ import annotations

from collections.abc import Iterator

import pytest

from codetune.sandbox import examples
from codetune.sandbox.examples import failed_example
from codetune.sandbox.launcher import NO_HARNESS, Sandbox
from codetune.sandbox.probe import choose_tier

CODE = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    started = Sandbox.start(choose_tier("auto"), tmp_path_factory.mktemp("sandbox"), NO_HARNESS)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("code", "session"),
    [
        (CODE, "Adds one.\n>>> f(1)\n2\n>>> f(2)\n3"),
        ("def f(x):\n    return {'b', 'a'}\n", '>>> f(1)\n{"a", "b"}'),  # the same value, written in another way
        ("def f(x):\n    raise ValueError('no')\n", ">>> f(1)\nTraceback (most recent call last):\nValueError: no"),
        ("import no_such_package\n" + CODE, ">>> f(1)\n3"),  # not judged
        ("def f(x):\n    return open('/etc/hostname').read()\n", ">>> f(1)\n'me'"),
        ("def f(x):\n    return input()\n", ">>> f(1)\n'me'"),
        ("x = input()\n" + CODE, ">>> f(1)\n3"),
        ("if __name__ == '__main__':\n    1 / 0\n" + CODE, ">>> f(1)\n2"),
    ],
)
def test_examples_that_hold_or_cannot_be_tried_here_are_no_failure(sandbox: Sandbox, code: str, session: str) -> None:
    assert failed_example(sandbox, code, [session], []) is None


@pytest.mark.parametrize(
    ("code", "session", "told"),
    [
        (CODE, ">>> f(1)\n2\n>>> f(2)\n4", "f(2) gives 3, not 4"),
        (CODE, ">>> f(1)", "f(1) gives 2, not nothing"),
        ("def f(x):\n    return g(x)\n", ">>> f(1)\n2", "f(1) raises NameError"),
    ],
)
def test_the_first_example_that_fails_is_told(sandbox: Sandbox, code: str, session: str, told: str) -> None:
    assert failed_example(sandbox, code, [session], []) == told


@pytest.mark.parametrize(
    ("assertion", "told"),
    [
        ("assert f(1) == 2", None),
        ("assert f(1) == 3", "assert f(1) == 3 does not hold"),
        ("assert f('a') == 3", "assert f('a') == 3 raises TypeError"),
    ],
)
def test_assertions_are_tried_after_the_sessions(sandbox: Sandbox, assertion: str, told: str | None) -> None:
    assert failed_example(sandbox, CODE, [">>> f(1)\n2"], [assertion]) == told


def test_examples_without_end_are_stopped(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "EXAMPLE_SECONDS", 0.2)
    endless = "def f(x):\n    while True:\n        pass\n"
    assert failed_example(sandbox, endless, [], ["assert f(1)"]) == "its examples take over 0.2 s"
    assert failed_example(sandbox, CODE, [], ["assert f(1) == 2"]) is None


def test_what_a_program_says_of_itself_is_one_short_line(sandbox: Sandbox) -> None:
    long = "def f(x):\n    return 'a\\n' * 10_000\n"
    told = failed_example(sandbox, long, [">>> print(f(1))\nb"], [])
    assert told is not None
    assert len(told) <= examples.LONGEST_REASON
    assert "\n" not in told
