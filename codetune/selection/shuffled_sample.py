"""Examples -> the sample of rows whose answers are scored after another row's instruction as well.

Such pairs have nothing to do with each other, so their scores show what mismatched pairs look like to this model. The
sample follows from the content of the rows alone, in any order and any process, and rows that are added to a data set
never move an older row into it."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from codetune.data.ids import unpack_id
from codetune.records import Example


def shuffled_sample(examples: Iterable[Example], rows: int) -> list[str]:
    """The ids of `rows` rows, or of all where there are fewer, spread over the lengths of answers: of every length (a
    power of two of characters) the smallest ids first, because an id is a digest. Holds `rows` ids a length in memory.
    """
    smallest: dict[int, list[int]] = defaultdict(list)  # heaps of negative ids, the largest id first
    for example in examples:
        heap = smallest[len(example.answer).bit_length()]
        heapq.heappush(heap, -int(example.id, 16))
        if len(heap) > rows:
            heapq.heappop(heap)
    ranked = [(rank, -number) for heap in smallest.values() for rank, number in enumerate(sorted(heap, reverse=True))]
    return [unpack_id(number) for _, number in sorted(ranked)[:rows]]


def choose_partners(sample: Sequence[Example]) -> Mapping[str, Example]:
    """For each row the next one by id, in a circle, with another instruction; none where all instructions are equal."""
    ordered = sorted(sample, key=lambda example: example.id)
    found: dict[str, Example] = {}
    for index, example in enumerate(ordered):
        others = (ordered[(index + step) % len(ordered)] for step in range(1, len(ordered)))
        others = (other for other in others if other.instruction != example.instruction)
        if (partner := next(others, None)) is not None:
            found[example.id] = partner
    return found
