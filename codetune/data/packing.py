"""How the samples of an optimizer step become micro-batches and rows, from their lengths alone (method.md, section 2).

    max_length    each sample fills a row of the maximum length          a a a . . . . .
                                                                         b b . . . . . .
    dynamic_pad   rows as long as the micro-batch's longest sample       a a a
                                                                         b b .
    paper_pack    sorted by length, end to end in rows of at most the    b b a a a
                  maximum length, padded to the longest of these rows    c c c c .
    dynamic_pack  one flat row, end to end, nothing padded               a a a b b c c c c

Which samples share a micro-batch does not change what is learned: the loss is the mean over the step's answer tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from codetune.project.sections import PadMode

MicroBatch = tuple[int, ...]  # positions among the step's samples
PACKED: tuple[PadMode, ...] = ("dynamic_pack", "paper_pack")


@dataclass(frozen=True, slots=True)
class MicroBatchPlan:
    """Who gets what of a step, and in how many micro-batches."""

    pad_mode: PadMode
    samples_per_micro_batch: int
    processes: int
    sort_in_step: bool
    width: int  # of the model: its hidden size


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Samples that stand end to end, and the padding behind them."""

    samples: tuple[int, ...]
    padding: int


def split(lengths: Sequence[int], plan_of_batches: MicroBatchPlan) -> tuple[tuple[MicroBatch, ...], ...]:
    """The micro-batches of each process: as many for one as for another, some empty where samples are few.

    `dynamic_pack` balances them by cost, so that no process waits and none holds much more than another. The others
    keep the drawn order (longest first with `sort_in_step`) and split micro-batches in turn, as is usual.

    >>> [split([5, 5, 1, 1], MicroBatchPlan(mode, 2, 1, False, 64)) for mode in ("dynamic_pad", "dynamic_pack")]
    [(((0, 1), (2, 3)),), (((0, 2), (1, 3)),)]
    """
    processes = plan_of_batches.processes
    each = -(-len(lengths) // (processes * plan_of_batches.samples_per_micro_batch))
    if plan_of_batches.pad_mode == "dynamic_pack":
        dealt = _balanced([cost(length, plan_of_batches.width) for length in lengths], each * processes)
        # Every other round the other way about, so that the heavier micro-batch is not always the same process's.
        rounds = [dealt[start : start + processes] for start in range(0, len(dealt), processes)]
        turns = [group[:: -1 if number % 2 else 1] for number, group in enumerate(rounds)]
    else:
        order = _longest_first(lengths) if plan_of_batches.sort_in_step else list(range(len(lengths)))
        cuts = [-(-len(order) * number // (each * processes)) for number in range(each * processes + 1)]
        groups = [tuple(order[start:end]) for start, end in pairwise(cuts)]
        groups.sort(key=lambda group: not group)  # the empty ones last
        turns = [groups[start : start + processes] for start in range(0, len(groups), processes)]
    return tuple(tuple(group[process] for group in turns) for process in range(processes))


def cost(length: int, width: int) -> int:
    """What a sample costs to train on, in units of a twelfth of `width`-th of a token: the linear layers of a
    transformer need some 24 * width**2 operations a token, its causal attention 2 * width * length.

    >>> cost(2048, 4096) / cost(1024, 4096)  # little more than twice
    2.0408163265306123
    """
    return 12 * width * length + length * length


def pack(lengths: Sequence[int], pad_mode: PadMode, max_length: int) -> tuple[PackedRow, ...]:
    """The rows of one micro-batch. Those of `dynamic_pack` have nothing between them: they are one row to the model.

    >>> pack([3, 2, 4], "paper_pack", 6)
    (PackedRow(samples=(1, 0), padding=0), PackedRow(samples=(2,), padding=1))
    """
    match pad_mode:
        case "max_length":
            return tuple(PackedRow((at,), max_length - length) for at, length in enumerate(lengths))
        case "dynamic_pad":
            longest = max(lengths)
            return tuple(PackedRow((at,), longest - length) for at, length in enumerate(lengths))
        case "dynamic_pack":
            return tuple(PackedRow(row, 0) for row in _next_fit(lengths, range(len(lengths)), max_length))
        case "paper_pack":
            shortest_first = sorted(range(len(lengths)), key=lambda at: lengths[at])
            rows = _next_fit(lengths, shortest_first, max_length)
            filled = [sum(lengths[at] for at in row) for row in rows]
            return tuple(PackedRow(row, max(filled) - tokens) for row, tokens in zip(rows, filled, strict=True))


def tokens_seen(lengths: Sequence[int], pad_mode: PadMode, max_length: int) -> int:
    """Tokens of one micro-batch as the model sees it, padding included.

    >>> [tokens_seen([3, 2, 4], mode, 8) for mode in ("max_length", "dynamic_pad", "paper_pack", "dynamic_pack")]
    [24, 12, 10, 9]
    """
    return sum(lengths) + sum(stretch.padding for stretch in pack(lengths, pad_mode, max_length))


def _balanced(costs: Sequence[int], count: int) -> list[MicroBatch]:
    """Dealt longest first to whichever has the least so far; the heaviest group first. Two of them differ by the cost
    of one sample at most, and each keeps its samples in the drawn order."""
    lightest = [(0, group) for group in range(count)]
    groups: list[list[int]] = [[] for _ in range(count)]
    for position in _longest_first(costs):
        load, group = heapq.heappop(lightest)
        groups[group].append(position)
        heapq.heappush(lightest, (load + costs[position], group))
    return [tuple(sorted(groups[group])) for _, group in sorted(lightest, key=lambda entry: (-entry[0], entry[1]))]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))


def _next_fit(lengths: Sequence[int], order: Sequence[int], max_length: int) -> list[tuple[int, ...]]:
    """Samples in `order`, a new row begun whenever the next one no longer fits; no row is looked at again."""
    rows: list[list[int]] = []
    room = 0
    for at in order:
        if lengths[at] > room:
            rows.append([])
            room = max_length
        rows[-1].append(at)
        room -= lengths[at]
    return [tuple(row) for row in rows]
