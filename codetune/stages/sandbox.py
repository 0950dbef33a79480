"""The sandbox as the stages use it: the tier that works here, the expected outputs of tasks, and the examples of
answers, run in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from codetune import console
from codetune.errors import InputError
from codetune.launch.environment import thread_count, user_cache
from codetune.records import Problem
from codetune.sandbox.examples import failed_example
from codetune.sandbox.launcher import NO_HARNESS, Sandbox
from codetune.sandbox.probe import choose_tier
from codetune.selection.answer_checks import ExampleProgram
from codetune.store.files import require_writable
from codetune.store.scratch import scratch_directory


@cache
def working_tier(wanted: str) -> str:
    """The sandbox tier; finding one that works takes a second. Raises CodetuneError where none does."""
    tier = choose_tier(wanted)
    if tier == "none":
        console.warn_once(
            "generated programs run without a sandbox, as evaluate.sandbox says: they can read and change your files "
            "and reach the network"
        )
    return tier


def failed_examples(programs: Iterable[ExampleProgram], tier: str) -> Iterator[tuple[str, str]]:
    """(id, "check examples: ...") of each row whose program gives something else than its examples say."""
    with scratch_directory() as scratch:
        sandbox = None
        try:
            for number, program in enumerate(programs):
                if sandbox is None or sandbox.broken:
                    (directory := scratch / str(number)).mkdir()
                    sandbox = Sandbox.start(tier, directory, NO_HARNESS)
                why = failed_example(sandbox, program.code, program.sessions, program.assertions)
                if why is not None:
                    yield program.row_id, f"check examples: {why}"
        finally:
            if sandbox is not None:
                sandbox.close()


def expected_outputs() -> Path:
    """The directory of the user's that keeps the expected outputs of tasks. Raises InputError where it cannot."""
    try:
        require_writable(user_cache() / "expected")
    except OSError as why:
        raise InputError(
            f"{user_cache()}: expected outputs cannot be kept there ({why.strerror}). Expected: a directory that can "
            "be written to. Name one in CODETUNE_CACHE_DIR"
        ) from why
    return user_cache() / "expected"


def prepare_expected(benchmark: str, problems: Sequence[Problem], tier: str) -> Path:
    """Computes the expected outputs that are missing; returns the directory of all. Raises DataError for a task whose
    own solution gives none."""
    from codetune.benchmark.judge import count_missing, prepare

    expected = user_cache() / "expected"
    if unknown := count_missing(problems, expected):
        with console.progress(f"expected outputs of {benchmark}", unknown, "task", 0) as bar:
            for _ in prepare(problems, expected, thread_count(), tier):
                bar.advance(1)
    return expected
