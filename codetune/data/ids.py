"""Row ids as columns of 64-bit numbers, and an index from ids to positions. An id of 16 hex digits (`content_id` in
`records.py`) takes 8 bytes as a number, and some 150 as text in a dictionary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def pack_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Ids of 16 hex digits as a column of numbers."""
    return np.fromiter((int(row_id, 16) for row_id in ids), dtype=np.uint64)


def unpack_id(number: int) -> str:
    """The id of 16 hex digits that `pack_ids` made a number of.

    >>> unpack_id(10)
    '000000000000000a'
    """
    return f"{number:016x}"


def draw_numbers(ids: NDArray[np.uint64], salt: str) -> NDArray[np.uint64]:
    """A number for each id, the first 8 bytes of the SHA-256 of salt and id: in the order of these numbers the first
    rows are a random sample, which rows that are added change no more than they must."""
    digests = (hashlib.sha256(f"{salt}:{unpack_id(number)}".encode()).digest()[:8] for number in ids.tolist())
    return np.fromiter((int.from_bytes(digest) for digest in digests), dtype=np.uint64)


class IdIndex:
    """The position of each id in a column, at 12 bytes a row; of an id that occurs twice, the first position."""

    def __init__(self, ids: NDArray[np.uint64]) -> None:
        # Stable, so that the first of several comes first.
        self._order = np.argsort(ids, kind="stable").astype(np.uint32)
        self._sorted = ids[self._order]

    def __len__(self) -> int:
        """The number of different ids."""
        return int(np.count_nonzero(self._sorted[1:] != self._sorted[:-1])) + (len(self._sorted) > 0)

    def find(self, row_id: str) -> int | None:
        """The position of one id; None where the column does not have it."""
        wanted = np.uint64(int(row_id, 16))
        at = int(np.searchsorted(self._sorted, wanted))
        if at == len(self._sorted) or self._sorted[at] != wanted:
            return None
        return int(self._order[at])

    def holds(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each of `ids`, whether the column has it."""
        if not len(self._sorted):
            return np.zeros(len(ids), dtype=np.bool_)
        at = np.searchsorted(self._sorted, ids)
        at[at == len(self._sorted)] = 0
        found: NDArray[np.bool_] = self._sorted[at] == ids
        return found

    def positions(self, ids: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The position of each of `ids`; the column must have all of them."""
        assert self.holds(ids).all()
        return self._order[np.searchsorted(self._sorted, ids)]
