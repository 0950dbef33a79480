"""How a row-wise stage (score, embed) gets from a data set to its rows: survey the data set, do the blocks that are
missing, tell when every row is there. Resume, shards and added rows follow from one question per row: is it done?
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from codetune.data.ids import unpack_id
from codetune.launch.environment import Shard
from codetune.records import Example, Refusal
from codetune.selection.blocks import Block
from codetune.store.block_log import BlockLog, FinishedRows, log_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
BLOCKS_AHEAD = 3  # prepared, waiting for the device
END = object()


@dataclass(frozen=True, slots=True)
class Work(Generic[Prepared]):
    """How the rows of a block are made, in two steps: what needs no device, and may run in another thread while the
    device is busy with the block before; and the rest. Each row as bytes, in the order of the examples."""

    prepare: Callable[[Sequence[Example]], Prepared]
    finish: Callable[[Sequence[Example], Prepared], Sequence[bytes]]


class Refusals:
    """Refused rows by their position, packed: a data set may be duplicates for the most part."""

    def __init__(self) -> None:
        self.positions = array("Q")
        self._ends = array("Q")
        self._text = bytearray()

    def add(self, position: int, refusal: Refusal) -> None:
        self._text += "\0".join((refusal.id or "", refusal.reason, refusal.at)).encode("utf-8", "surrogatepass")
        self.positions.append(position)
        self._ends.append(len(self._text))

    def __iter__(self) -> Iterator[Refusal]:
        for start, end in pairwise(chain((0,), self._ends)):
            row_id, reason, at = self._text[start:end].decode("utf-8", "surrogatepass").split("\0", 2)
            yield Refusal(row_id or None, reason, at)


@dataclass(frozen=True, slots=True)
class Survey:
    """A data set at 8 bytes a usable row: the ids in data-set order, and what was refused in between."""

    ids: array[int]  # unsigned 64 bits; 0 where the row was refused
    refusals: Refusals

    @property
    def usable(self) -> int:
        return len(self.ids) - len(self.refusals.positions)

    def rows(self) -> Iterator[str | Refusal]:
        refused = zip(self.refusals.positions, self.refusals, strict=True)
        position, refusal = next(refused, (-1, None))
        for at, number in enumerate(self.ids):
            if at == position and refusal is not None:
                yield refusal
                position, refusal = next(refused, (-1, None))
            else:
                yield unpack_id(number)

    def usable_ids(self) -> NDArray[np.uint64]:
        """Of the rows that were not refused, in data-set order."""
        is_usable = np.ones(len(self.ids), dtype=np.bool_)
        is_usable[np.frombuffer(self.refusals.positions, dtype=np.uint64)] = False
        return np.frombuffer(self.ids, dtype=np.uint64)[is_usable]

    def refused(self) -> Counter[str]:
        return Counter(refusal.kind for refusal in self.refusals)


def survey(rows: Iterable[Example | Refusal]) -> Survey:
    """Reads the whole data set once, so that damaged data is told before a model is loaded."""
    ids, refusals = array("Q"), Refusals()
    for position, row in enumerate(rows):
        if isinstance(row, Refusal):
            refusals.add(position, row)
        ids.append(int(row.id, 16) if isinstance(row, Example) else 0)
    return Survey(ids, refusals)


def do_missing(
    blocks: Iterable[Block], directory: Path, finished: FinishedRows, shard: Shard, load: Callable[[], Work[Prepared]]
) -> Iterator[int]:
    """Does this shard's blocks, leaving out finished rows; yields the number of rows done with each block.

    `load` makes the worker when the first missing row is met, so that nothing is loaded where nothing is missing. The
    data set is read, and blocks are prepared, in a thread ahead of the device."""
    todo = _missing(blocks, finished, shard)
    first = next(todo, None)
    if first is None:
        return
    work = load()
    prepared = ahead(((examples, work.prepare(examples)) for examples in chain([first], todo)), BLOCKS_AHEAD)
    with BlockLog(log_path(directory, shard)) as log, closing(prepared):
        for examples, ready in prepared:
            log.append([example.id for example in examples], work.finish(examples, ready))
            yield len(examples)


def _missing(blocks: Iterable[Block], finished: FinishedRows, shard: Shard) -> Iterator[Sequence[Example]]:
    for block in blocks:
        if block.index % shard[1] == shard[0]:
            missing = [example for example in block.examples if example.id not in finished]
            if missing:
                yield missing


def ahead(items: Iterator[Item], count: int) -> Generator[Item]:
    """The same items, made in a thread up to `count` ahead of whoever takes them. An error comes where its item would
    have come."""
    thread = ThreadPoolExecutor(1)
    try:
        waiting = deque(thread.submit(next, items, END) for _ in range(count))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(next, items, END))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)


def count_missing(rows: Survey, finished: FinishedRows) -> int:
    return int(np.count_nonzero(~finished.holds(rows.usable_ids())))
