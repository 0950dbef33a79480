"""The shards of an unfinished artefact of rows, as they were asked for by `--shard`: done, running, dead or not begun.

A shard is done when its process has written so, dead when its log has blocks, no process holds its lock, and it is not
done. What a shard of another number has made counts as rows all the same: nothing here decides what is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetune.launch.environment import Shard
from codetune.store.block_log import log_path
from codetune.store.files import write_text
from codetune.store.locks import holders, locked_shards
from codetune.store.run_directory import Run

WAITING = ("dead", "not begun")  # the states of shards that nobody works on, and that are not done
SHOWN_NUMBERS = 8  # of the shards in one state


@dataclass(frozen=True, slots=True)
class ShardState:
    shard: Shard
    state: Literal["done", "running", "dead", "not begun"]


def mark_done(parts: Path, shard: Shard, rows: int) -> None:
    """Writes that a shard of a data set of so many rows has nothing left to do."""
    write_text(_mark(parts, shard), f"{rows}\n")


def shard_states(run: Run, lock: str, parts: Path, rows: int | None) -> list[ShardState]:
    """The states of all shards of each number of them that is under way; `rows` are those of the data set now."""
    begun = {shard for shard in locked_shards(run, lock) if _is_begun(run, lock, parts, shard)}
    every = [(index, count) for count in sorted({count for _, count in begun}) for index in range(count)]
    return [ShardState(shard, _state(run, lock, parts, shard, rows)) for shard in every]


def summary(states: Sequence[ShardState]) -> str:
    """The states of the shards as text; "" where there are none.

    >>> summary([ShardState((0, 3), "done"), ShardState((1, 3), "dead"), ShardState((2, 3), "not begun")])
    'shards of 3: 1 done (0), 1 dead (1), 1 not begun (2)'
    """
    texts = []
    for count in dict.fromkeys(found.shard[1] for found in states):
        numbers: dict[str, list[int]] = {}
        for found in states:
            if found.shard[1] == count:
                numbers.setdefault(found.state, []).append(found.shard[0])
        parts = [f"{len(indices)} {state} ({_listed(indices)})" for state, indices in numbers.items()]
        texts.append(f"shards of {count}: {', '.join(parts)}")
    return "; ".join(texts)


def next_shard(states: Sequence[ShardState]) -> Shard | None:
    """The first that nobody works on, a dead one before one that has not begun; None where there is none."""
    waiting = sorted((found.state, found.shard) for found in states if found.state in WAITING)
    return waiting[0][1] if waiting else None


def _is_begun(run: Run, lock: str, parts: Path, shard: Shard) -> bool:
    """Not one whose lock only a finished artefact has left behind."""
    return log_path(parts, shard).exists() or _mark(parts, shard).exists() or _is_held(run, lock, shard)


def _state(
    run: Run, lock: str, parts: Path, shard: Shard, rows: int | None
) -> Literal["done", "running", "dead", "not begun"]:
    if _is_held(run, lock, shard):
        return "running"
    if _mark(parts, shard).exists() and _mark(parts, shard).read_text(encoding="ascii").strip() == str(rows):
        return "done"
    return "dead" if log_path(parts, shard).exists() else "not begun"


def _is_held(run: Run, lock: str, shard: Shard) -> bool:
    return bool(holders(run, f"{lock}-{shard[0]}-of-{shard[1]}"))


def _mark(parts: Path, shard: Shard) -> Path:
    return parts / f"{shard[0]}-of-{shard[1]}.done"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN_NUMBERS])) + (", ..." if len(numbers) > SHOWN_NUMBERS else "")
