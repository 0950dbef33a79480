"""The sandbox as the stages use it: the tier that works here, and the examples of answers, run in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from codetune import console
from codetune.sandbox.examples import failed_example
from codetune.sandbox.launcher import NO_HARNESS, Sandbox
from codetune.sandbox.probe import choose_tier
from codetune.selection.answer_checks import ExampleProgram
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
