"""Examples -> the rows that repeat another row, exactly or nearly.

Two rows are near duplicates if the sets of their shingles (three tokens in a row, of instruction and answer) have a
Jaccard index of 0.8 or more. Candidates are found by MinHash (Broder 1997) in bands (Leskovec et al., Mining of Massive
Datasets, sec. 3.4), and each is compared by its text, so that no estimate decides. Of rows that repeat each other the
one with the smallest id is kept; the order of the data set changes nothing. Takes some 90 bytes of memory a row.

Does not find rows that say the same in other words.

Axes: N rows, ascending by id; B bands."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from codetune.data.ids import unpack_id
from codetune.records import Example

TOKEN = re.compile(r"\w+|[^\w\s]")  # a word, or one character that is neither of a word nor white space
SHINGLE_TOKENS = 3
LEAST_JACCARD = 0.8
# 1 - (1 - J^8)^16 of the pairs with Jaccard index J share a band: 95 % at 0.8, 99.9 % at 0.9, 6 % at 0.5.
BANDS, BAND_ROWS = 16, 8
SEED = 0  # of the permutations; another one finds other candidates
MOST_KEPT = 32  # rows of one bucket that the others are compared with: bounds the work on rows of one template


@dataclass(frozen=True, slots=True)
class Sketches:
    """What is kept of each row."""

    order: NDArray[np.int64]  # [N] the positions in the data set, by ascending id
    ids: NDArray[np.uint64]  # [N] ascending
    texts: NDArray[np.uint64]  # [N] digests of the tokens
    signatures: NDArray[np.uint32]  # [N, B] in the order of the data set, in a file; B is 0 for exact duplicates alone

    @classmethod
    def of(cls, examples: Iterable[Example], near: bool, file: BinaryIO) -> Sketches:
        """`file` is empty, and keeps the signatures."""
        ids, texts = array("Q"), array("Q")
        for example in examples:
            tokens = _tokens(example)
            ids.append(int(example.id, 16))
            texts.append(int.from_bytes(blake2b("\0".join(tokens).encode(), digest_size=8).digest()))
            if near:
                file.write(_bands(_shingles(tokens)))
        file.flush()
        id_column, text_column = (np.frombuffer(column, dtype=np.uint64) for column in (ids, texts))
        order = np.argsort(id_column)
        signatures = np.empty((len(ids), 0), dtype=np.uint32)
        if near and len(ids):
            signatures = np.memmap(file, dtype=np.uint32, mode="r", shape=(len(ids), BANDS))
        return cls(order, id_column[order], text_column[order], signatures)

    def bands(self) -> Iterator[NDArray[np.uint32]]:
        """A digest [N] of each band of the MinHash signatures, one at a time."""
        return (self.signatures[:, band][self.order] for band in range(self.signatures.shape[1]))


def find_duplicates(
    examples: Iterable[Example], read: Callable[[str], Example], near: bool, file: BinaryIO
) -> Iterator[tuple[str, str]]:
    """(id, why) of each row that repeats a row with a smaller id, which is kept: "duplicate of ID" where they differ in
    white space at most, else, if `near`, "near duplicate of ID". `read` gives an example again by its id; `file` is
    empty, and is used for 64 bytes a row. Between a near duplicate and the row that is kept there may stand others that
    are dropped as well."""
    sketches = Sketches.of(examples, near, file)
    kept_by = np.arange(len(sketches.ids))  # [N] the row that each one repeats; itself where it is kept
    for bucket in _buckets(sketches.texts, kept_by):
        kept_by[bucket] = bucket[0]
    is_exact = kept_by != np.arange(len(kept_by))

    def shingles_of(row: int) -> frozenset[str]:
        return _shingles(_tokens(read(unpack_id(int(sketches.ids[row])))))

    for band in sketches.bands():
        for bucket in _buckets(band, kept_by):
            for row, kept in _repeats(bucket, shingles_of):
                kept_by[row] = kept
    for row in np.flatnonzero(kept_by != np.arange(len(kept_by))).tolist():
        kept_by[row] = kept_by[kept_by[row]]  # ascending, so that the row it repeats is resolved already
        kind = "duplicate" if is_exact[row] else "near duplicate"
        yield unpack_id(int(sketches.ids[row])), f"{kind} of {unpack_id(int(sketches.ids[kept_by[row]]))}"


def group_repeats(
    examples: Iterable[Example], read: Callable[[str], Example], file: BinaryIO
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The ids [N], ascending, and for each row the first row [N] of its group. Rows that repeat each other, exactly or
    nearly, are in one group, and so are rows that others connect. `read` and `file` as of `find_duplicates`."""
    sketches = Sketches.of(examples, True, file)
    rows = np.arange(len(sketches.ids))
    group = rows.copy()
    for bucket in _buckets(sketches.texts, rows):
        group[bucket] = bucket[0]

    @lru_cache(2 * MOST_KEPT)
    def shingles_of(row: int) -> frozenset[str]:
        return _shingles(_tokens(read(unpack_id(int(sketches.ids[row])))))

    for band in sketches.bands():
        for bucket in _buckets(band, rows):
            _connect(bucket.tolist(), group, shingles_of)
    for row in rows.tolist():
        group[row] = group[group[row]]  # ascending, so that the row it points to is resolved already
    return sketches.ids, group


def _connect(bucket: list[int], group: NDArray[np.int64], shingles_of: Callable[[int], frozenset[str]]) -> None:
    """Joins the groups of the rows of a bucket that repeat each other; a group points to its smallest row."""
    for index, row in enumerate(bucket):
        for other in bucket[: min(index, MOST_KEPT)]:
            first, second = sorted((_first_of_group(group, row), _first_of_group(group, other)))
            if first != second and jaccard(shingles_of(row), shingles_of(other)) >= LEAST_JACCARD:
                group[second] = first


def _first_of_group(group: NDArray[np.int64], row: int) -> int:
    while group[row] != row:
        row = int(group[row])
    return row


def similarity(first: Example, second: Example) -> float:
    """The Jaccard index of the shingles of two rows."""
    return jaccard(_shingles(_tokens(first)), _shingles(_tokens(second)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """The size of the intersection over that of the union.

    >>> jaccard(frozenset("abc"), frozenset("bcd"))
    0.5
    """
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def _tokens(example: Example) -> list[str]:
    return TOKEN.findall("\n\n".join(message.text for message in example.messages))


def _shingles(tokens: list[str]) -> frozenset[str]:
    lower = [token.casefold() for token in tokens]
    count = max(1, len(lower) - SHINGLE_TOKENS + 1)
    return frozenset(" ".join(lower[first : first + SHINGLE_TOKENS]) for first in range(count))


def _bands(shingles: frozenset[str]) -> bytes:
    """A digest of four bytes for each band of the signature."""
    sketch = RMinHash(num_perm=BANDS * BAND_ROWS, seed=SEED)
    sketch.update(list(shingles))
    content = np.array(sketch.digest(), dtype="<u4").tobytes()
    size = 4 * BAND_ROWS
    parts = (content[first : first + size] for first in range(0, len(content), size))
    return b"".join(blake2b(part, digest_size=4).digest() for part in parts)


def _buckets(keys: NDArray[np.uint64] | NDArray[np.uint32], kept_by: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The groups of kept rows with equal keys, of two rows or more, each ascending by id."""
    rows = np.flatnonzero(kept_by == np.arange(len(kept_by)))
    order = rows[np.argsort(keys[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] + np.array(1, dtype=keys.dtype)))
    ends = np.append(starts[1:], len(order))
    for at in np.flatnonzero(ends - starts > 1).tolist():
        yield order[starts[at] : ends[at]]


def _repeats(bucket: NDArray[np.int64], shingles_of: Callable[[int], frozenset[str]]) -> Iterator[tuple[int, int]]:
    """(row, the row of the bucket that it nearly repeats) for rows of a bucket; none of the latter repeats another."""
    kept: list[tuple[int, frozenset[str]]] = []
    for row in bucket.tolist():
        shingles = shingles_of(row)
        found = next((other for other, theirs in kept if jaccard(shingles, theirs) >= LEAST_JACCARD), None)
        if found is not None:
            yield row, found
        elif len(kept) < MOST_KEPT:
            kept.append((row, shingles))
