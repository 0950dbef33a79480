"""How a row-wise stage (score, embed) gets from a data set to its rows: survey the data set, do the blocks that are
missing, tell when every row is there. Resume, shards and added rows follow from one question per row: is it done?
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codetune.launch import Shard
from codetune.parts import BlockLog, Rows, log_path
from codetune.records import Example, Refusal

BlockWork = Callable[[Sequence[Example]], Sequence[bytes]]


class Block(Protocol):
    @property
    def index(self) -> int: ...
    @property
    def examples(self) -> Sequence[Example]: ...


@dataclass(frozen=True, slots=True)
class Survey:
    """A data set at 8 bytes a usable row: the ids in data-set order, and what was refused in between."""

    ids: array[int]  # unsigned 64 bits; 0 where the row was refused
    refusals: dict[int, Refusal]  # by position

    @property
    def usable(self) -> int:
        return len(self.ids) - len(self.refusals)

    def rows(self) -> Iterator[str | Refusal]:
        for position, number in enumerate(self.ids):
            yield self.refusals.get(position) or f"{number:016x}"

    def refused(self) -> Counter[str]:
        return Counter(refusal.kind for refusal in self.refusals.values())


def survey(rows: Iterable[Example | Refusal]) -> Survey:
    """Reads the whole data set once, so that damaged data is told before a model is loaded."""
    ids, refusals = array("Q"), {}
    for position, row in enumerate(rows):
        if isinstance(row, Refusal):
            refusals[position] = row
        ids.append(int(row.id, 16) if isinstance(row, Example) else 0)
    return Survey(ids, refusals)


def do_missing(
    blocks: Iterable[Block], directory: Path, finished: Rows, shard: Shard, load: Callable[[], BlockWork]
) -> Iterator[int]:
    """Does this shard's blocks, leaving out finished rows; yields the number of rows done with each block.

    `load` makes the worker when the first missing row is met, so that nothing is loaded where nothing is missing."""
    work: BlockWork | None = None
    with BlockLog(log_path(directory, shard)) as log:
        for block in blocks:
            if block.index % shard[1] != shard[0]:
                continue
            missing = [example for example in block.examples if example.id not in finished]
            if not missing:
                continue
            work = work or load()
            log.append([example.id for example in missing], work(missing))
            yield len(missing)


def count_missing(rows: Survey, finished: Rows) -> int:
    return sum(isinstance(row, str) and row not in finished for row in rows.rows())
