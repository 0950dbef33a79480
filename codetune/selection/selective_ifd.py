"""Token likelihoods -> S-IFD (T-SHIRT, Fu et al. 2025, arXiv 2506.01317): IFD over the answer tokens whose likelihood
the instruction changes most.

An answer token t has the difference d_t = NLL(t after the prompt) - NLL(t without it), in nats. A token counts if |d_t|
is above a limit that all rows share, and S-IFD is exp(mean of d_t over the tokens of the row that count). The limit is
an exact percentile of |d_t| over all rows: scores.jsonl keeps every difference, in float32, and the percentile is found
in two passes over them, in bounded memory.

Axes: T scored tokens of an answer, N rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from codetune.selection.row_vectors import Floats

Differences = NDArray[np.float32]  # [T], of one row; empty for a row without a score
CHUNK_TOKENS = 1 << 20
HALVES = 1 << 16  # of a float32: the upper half is found in the first pass, the lower half in the second
HALF_BITS, LOWER_HALF = np.uint32(16), np.uint32(HALVES - 1)


def selective_ifd(read: Callable[[], Iterable[Differences]], rows: int, share: float) -> Floats:
    """S-IFD of each of `rows` rows [N], whose differences `read` gives anew at each call, in their order. `share` of
    all tokens count, as near as equal differences allow. NaN for a row of which no token counts."""
    found, limit = np.full(rows, np.nan), token_limit(read, share)
    with np.errstate(over="ignore"):  # beyond the range of a double: infinity, the hardest
        for row, differences in enumerate(read()):
            counting = differences[np.abs(differences) > limit]
            if len(counting):
                found[row] = np.exp(counting.mean(dtype=np.float64))
    return found


def token_limit(read: Callable[[], Iterable[Differences]], share: float) -> float:
    """The percentile 100 * (1 - `share`) of the absolute differences of all rows: of M in ascending order the one at
    the index floor((M - 1) * (1 - share)). Below 0 where `share` is 1, so that every token counts."""
    upper = _count_halves(bits >> HALF_BITS for bits in _absolute_bits(read()))
    tokens = int(upper.sum())
    if share == 1 or not tokens:
        return -1.0
    index = int((tokens - 1) * (1 - share))
    high = int(np.searchsorted(np.cumsum(upper), index, side="right"))
    lower = _count_halves(bits[bits >> HALF_BITS == high] & LOWER_HALF for bits in _absolute_bits(read()))
    low = int(np.searchsorted(np.cumsum(lower), index - int(upper[:high].sum()), side="right"))
    return float(np.array(high * HALVES + low, dtype=np.uint32).view(np.float32))


def _absolute_bits(rows: Iterable[Differences]) -> Iterator[NDArray[np.uint32]]:
    """The bits of the absolute differences, many at once. As unsigned numbers they are in the order of the values."""
    waiting, tokens = [np.empty(0, dtype=np.float32)], 0
    for differences in rows:
        waiting.append(differences)
        tokens += len(differences)
        if tokens >= CHUNK_TOKENS:
            yield np.abs(np.concatenate(waiting)).view(np.uint32)
            waiting, tokens = [], 0
    yield np.abs(np.concatenate([np.empty(0, dtype=np.float32), *waiting])).view(np.uint32)


def _count_halves(parts: Iterable[NDArray[np.uint32]]) -> NDArray[np.int64]:
    """How often each of the values below `HALVES` occurs."""
    counts = np.zeros(HALVES, dtype=np.int64)
    for part in parts:
        counts += np.bincount(part, minlength=HALVES)
    return counts
