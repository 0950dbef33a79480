"""The vectors of rows in the order of their ids, read from the embeddings' file as they are needed: no copy of all of
them is ever in memory. Arithmetic with them runs on one thread of the linear algebra library, because several add up in
an order of their own; several chunks at once make up for it.

Axes: N rows, D dimensions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

CHUNK_ROWS = 4096
RowIndices = NDArray[np.int64]  # positions in columns that are sorted by id
Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]
T = TypeVar("T")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RowVectors:
    stored: Vectors  # [rows of the file, D], may be memory-mapped
    positions: RowIndices  # [N], the row of the file that each row is

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, rows: RowIndices | slice) -> Vectors:
        """A copy of the vectors of `rows`: [rows, D]."""
        return self.stored[self.positions[rows]]

    def subset(self, rows: RowIndices) -> RowVectors:
        return RowVectors(self.stored, self.positions[rows])

    def chunks(self) -> Iterator[Vectors]:
        """Copies of all vectors, `CHUNK_ROWS` at a time."""
        return (self.take(slice(first, first + CHUNK_ROWS)) for first in range(0, len(self), CHUNK_ROWS))


def lowest_of_equal_rows(vectors: RowVectors, chosen: RowIndices, values: Floats | None = None) -> RowIndices:
    """As many rows of each group with equal vectors (and equal `values` [N]) as `chosen` has, those at the lowest
    positions. To a rule that reads nothing else such rows are one; which of them comes first in floating-point
    arithmetic depends on the place of a row in a matrix product."""
    digests = np.fromiter(
        (_digest(row) for chunk in vectors.chunks() for row in chunk), dtype=np.uint64, count=len(vectors)
    )
    keys = digests[None] if values is None else np.stack([digests, values.view(np.uint64)])
    _, group = np.unique(keys, axis=1, return_inverse=True)  # [N]
    sizes, wanted = np.bincount(group), np.bincount(group[chosen], minlength=int(group.max(initial=-1)) + 1)
    in_order = np.argsort(group, kind="stable")
    rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return in_order[rank < wanted[group[in_order]]]


def _digest(row: Vectors) -> int:
    return int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest())


def spread_sample(rows: int, size: int) -> RowIndices:
    """At most `size` of `rows` positions at equal distances. Ids are digests of the content, so that rows at equal
    distances in their order are a random sample.

    >>> spread_sample(10, 4)
    array([0, 3, 6, 9])
    """
    return np.arange(0, rows, max(1, -(-rows // size)))


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """One thread a processor, each with its own linear algebra."""
    with threadpool_limits(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield pool


def map_in_threads(function: Callable[[T], Result], items: Iterable[T]) -> Iterator[Result]:
    """The results of `function` in the order of `items`. The number of processors changes no bit."""
    with threads() as pool:
        yield from pool.map(function, items)
