"""The data sets of a project, one or several with names and weights -> the rows of their mixture, counted by name.

Several data sets are read one after the other, in the order of the project. Of the usable rows of one with a weight w
below 1 the first w * n are taken (rounded up) in the order of their ids: a row's id is a hash of its messages, so this
is a random draw that depends on no seed, no file and no order, and the rows of a smaller weight are among those of a
larger one. Then a row that an earlier data set has given is refused as its duplicate. Rows that the weight leaves out
are counted, and in no artefact. A data set with such a weight is read twice: no id is known before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NotRequired, TypedDict

import numpy as np

from codetune.data.source import DataSource, read_examples, read_sources
from codetune.records import DUPLICATE_OF, Example, Refusal


class SourceCounts(TypedDict):
    """The rows of one of several data sets."""

    rows: int  # usable ones that are taken
    refused: int
    left_by_weight: NotRequired[int]  # where its weight is below 1
    duplicates_of: NotRequired[dict[str, int]]  # name of an earlier data set -> refused rows that it has given


class MixedRows:
    """Iterates over the rows of all data sets that the weights take; counts them by name."""

    def __init__(self, sources: Sequence[DataSource]) -> None:
        self._sources = sources
        self.counts: dict[str, SourceCounts] = {}

    def __iter__(self) -> Iterator[Example | Refusal]:
        rows, refused, left = Counter[str](), Counter[str](), Counter[str]()
        elsewhere = {source.name: Counter[str]() for source in self._sources}
        largest_ids = {one.name: _largest_taken(one) for one in self._sources if one.weight < 1}
        for name, row in read_sources(self._sources, largest_ids):
            if row is None:
                left[name] += 1
                continue
            if isinstance(row, Example):
                rows[name] += 1
            else:
                refused[name] += 1
                if (other := _repeated_set(row)) in elsewhere and other != name:
                    elsewhere[name][other] += 1
            yield row
        for source in self._sources:
            counts: SourceCounts = {"rows": rows[source.name], "refused": refused[source.name]}
            if source.weight < 1:
                counts["left_by_weight"] = left[source.name]
            if elsewhere[source.name]:
                counts["duplicates_of"] = dict(elsewhere[source.name])
            self.counts[source.name] = counts


def _largest_taken(source: DataSource) -> int:
    """The largest of the ids that the weight of a data set takes; 0 where it has no usable row."""
    rows = read_examples(source.dataset, source.location)
    ids = np.fromiter((int(row.id, 16) for row in rows if isinstance(row, Example)), dtype=np.uint64)
    count = math.ceil(Fraction(str(source.weight)) * len(ids))
    return int(np.partition(ids, count - 1)[count - 1]) if count else 0


def _repeated_set(refusal: Refusal) -> str | None:
    """The name of the data set that holds the row of which this one is a duplicate."""
    before, is_duplicate, original = refusal.reason.partition(DUPLICATE_OF)
    return original.partition(": ")[0] if is_duplicate and not before else None
