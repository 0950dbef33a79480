"""The lengths of an optimizer step's samples -> micro-batches for each process, and the rows of a micro-batch
(docs/method.md, section 2). Works on lengths in tokens alone; tensors are made by `training/collate.py`.

    max_length    each sample in a row of the maximum length             a a a . . . . .
                                                                         b b . . . . . .
    dynamic_pad   rows as long as the micro-batch's longest sample       a a a
                                                                         b b .
    paper_pack    sorted by length, end to end in rows of at most the    b b a a a
                  maximum length, padded to the longest of these rows    c c c c .
    dynamic_pack  one flat row, end to end, without padding              a a a b b c c c c

Which samples share a micro-batch does not change the loss: it is the mean over all answer tokens of the step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from codetune.project.sections import PadMode

MicroBatch = tuple[int, ...]  # indices into the step's samples
PACKED: tuple[PadMode, ...] = ("dynamic_pack", "paper_pack")


@dataclass(frozen=True, slots=True)
class MicroBatchPlan:
    """The split of a step into micro-batches of about this many samples, for this many data-parallel processes."""

    pad_mode: PadMode
    samples_per_micro_batch: int
    processes: int
    sort_in_step: bool
    hidden_size: int  # of the model


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Samples that stand end to end in one row, as indices into the micro-batch, and the padding tokens after them."""

    samples: tuple[int, ...]
    padding: int


def split_into_micro_batches(lengths: Sequence[int], plan: MicroBatchPlan) -> tuple[tuple[MicroBatch, ...], ...]:
    """The micro-batches of each process: the same number for all, some of them empty where samples are few.

    `dynamic_pack` balances micro-batches and processes by `sample_cost`. The other modes keep the drawn order (longest
    first with `sort_in_step`) and give the micro-batches to the processes in turn.

    >>> modes = ("dynamic_pad", "dynamic_pack")
    >>> [split_into_micro_batches([5, 5, 1, 1], MicroBatchPlan(mode, 2, 1, False, 64)) for mode in modes]
    [(((0, 1), (2, 3)),), (((0, 2), (1, 3)),)]
    """
    count = -(-len(lengths) // (plan.processes * plan.samples_per_micro_batch)) * plan.processes
    if plan.pad_mode == "dynamic_pack":
        batches = _balanced([sample_cost(length, plan.hidden_size) for length in lengths], count)
    else:
        batches = _even_parts(_longest_first(lengths) if plan.sort_in_step else range(len(lengths)), count)
    turns = [batches[start : start + plan.processes] for start in range(0, count, plan.processes)]
    if plan.pad_mode == "dynamic_pack":
        # Every other round is reversed, so that the heaviest micro-batch of a round is not always the same process's.
        turns[1::2] = [turn[::-1] for turn in turns[1::2]]
    return tuple(tuple(turn[process] for turn in turns) for process in range(plan.processes))


def sample_cost(length: int, hidden_size: int) -> int:
    """Training cost of a sample, in units of 1 / (12 * hidden_size) of a token's cost in the linear layers.

    A transformer layer needs about 24 * hidden_size**2 operations a token in its linear layers, and
    2 * hidden_size * length in causal attention.

    >>> sample_cost(2048, 4096) / sample_cost(1024, 4096)  # little more than twice
    2.0408163265306123
    """
    return 12 * hidden_size * length + length * length


def pack(lengths: Sequence[int], pad_mode: PadMode, max_length: int) -> tuple[PackedRow, ...]:
    """The rows of one micro-batch. The model sees the rows of `dynamic_pack` as one row, end to end.

    >>> pack([3, 2, 4], "paper_pack", 6)
    (PackedRow(samples=(1, 0), padding=0), PackedRow(samples=(2,), padding=1))
    """
    if pad_mode == "dynamic_pack":
        return tuple(PackedRow(tuple(row), 0) for row in next_fit(lengths, max_length))
    rows: list[tuple[int, ...]] = [(index,) for index in range(len(lengths))]
    if pad_mode == "paper_pack":
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        bins = next_fit([lengths[index] for index in order], max_length)
        rows = [tuple(order[row.start : row.stop]) for row in bins]
    filled = [sum(lengths[index] for index in row) for row in rows]
    width = max_length if pad_mode == "max_length" else max(filled, default=0)
    return tuple(PackedRow(row, width - tokens) for row, tokens in zip(rows, filled, strict=True))


def next_fit(lengths: Iterable[int], capacity: int) -> list[range]:
    """Next-fit bin packing: the items in their order, a new bin begun whenever the next item does not fit into the
    current one. A bin is a range of indices. An item longer than `capacity` gets a bin of its own.

    >>> next_fit([3, 4, 9, 1], 8)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    starts, filled, index = [], 0, -1
    for index, length in enumerate(lengths):
        if index == 0 or filled + length > capacity:
            starts.append(index)
            filled = 0
        filled += length
    return [range(start, end) for start, end in pairwise([*starts, index + 1])]


def _balanced(costs: Sequence[int], count: int) -> list[MicroBatch]:
    """`count` micro-batches, most expensive first, each in the drawn order: every sample, longest first, goes to the
    micro-batch that is cheapest so far (the LPT rule; Graham 1969). Two of them differ by at most one sample's cost."""
    cheapest = [(0, batch) for batch in range(count)]
    batches: list[list[int]] = [[] for _ in range(count)]
    for index in _longest_first(costs):
        cost, batch = heapq.heappop(cheapest)
        batches[batch].append(index)
        heapq.heappush(cheapest, (cost + costs[index], batch))
    return [tuple(sorted(batches[batch])) for _, batch in sorted(cheapest, key=lambda entry: (-entry[0], entry[1]))]


def _even_parts(order: Sequence[int], count: int) -> list[MicroBatch]:
    """`order` cut into `count` parts whose sizes differ by at most one; empty parts last."""
    cuts = [-(-len(order) * number // count) for number in range(count + 1)]
    parts = [tuple(order[start:end]) for start, end in pairwise(cuts)]
    return sorted(parts, key=lambda part: not part)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
