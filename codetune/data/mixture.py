"""The data sets of a project, one or several with names and weights -> the rows of their mixture, counted by name.

Several data sets are read one after the other, in the order of the project. Of the usable rows of one with a weight w
below 1 the first w * n are taken (rounded up) in the order of their ids: a row's id is a hash of its messages, so this
is a random draw that depends on no seed, no file and no order, and the rows of a smaller weight are among those of a
larger one. A row that an earlier data set holds is refused as its duplicate, and counts for no weight. Rows that the
weight leaves out are counted, and in no artefact. Such a mixture is read twice: no id is known before."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from codetune.data.source import DataSource, read_sources
from codetune.records import Example, Refusal

DUPLICATE_OF = "duplicate of "


class MixedRows:
    """Iterates over the rows of all data sets that the weights take; counts them by name."""

    def __init__(self, sources: Sequence[DataSource]) -> None:
        self._sources = sources
        self.counts: dict[str, dict[str, object]] = {}

    def __iter__(self) -> Iterator[Example | Refusal]:
        limits = self._largest_ids()
        rows, refused, left = Counter[str](), Counter[str](), Counter[str]()
        elsewhere = {source.name: Counter[str]() for source in self._sources}
        for name, row in read_sources(self._sources):
            if isinstance(row, Refusal):
                refused[name] += 1
                if (other := _repeated_set(row)) in elsewhere and other != name:
                    elsewhere[name][other] += 1
            elif int(row.id, 16) > limits.get(name, math.inf):
                left[name] += 1
                continue
            else:
                rows[name] += 1
            yield row
        for source in self._sources:
            counts: dict[str, object] = {"rows": rows[source.name], "refused": refused[source.name]}
            counts |= {"left_by_weight": left[source.name]} if source.weight < 1 else {}
            counts |= {"duplicates_of": dict(elsewhere[source.name])} if elsewhere[source.name] else {}
            self.counts[source.name] = counts

    def _largest_ids(self) -> dict[str, int]:
        """The largest id that is taken of each data set with a weight below 1."""
        weights = {source.name: Fraction(str(source.weight)) for source in self._sources if source.weight < 1}
        if not weights:
            return {}
        ids = {name: array("Q") for name in weights}
        for name, row in read_sources(self._sources):
            if name in weights and isinstance(row, Example):
                ids[name].append(int(row.id, 16))
        return {name: _largest_taken(ids[name], weight) for name, weight in weights.items() if ids[name]}


def _largest_taken(ids: array[int], weight: Fraction) -> int:
    """The largest of the first `weight` of the ids in their order.

    >>> _largest_taken(array("Q", [7, 1, 5, 3]), Fraction("0.5"))
    3
    """
    count = math.ceil(weight * len(ids))
    return int(np.partition(np.frombuffer(ids, dtype=np.uint64), count - 1)[count - 1])


def _repeated_set(refusal: Refusal) -> str | None:
    """The name of the data set that holds the row of which this one is a duplicate."""
    before, is_duplicate, original = refusal.reason.partition(DUPLICATE_OF)
    return original.partition(": ")[0] if is_duplicate and not before else None
