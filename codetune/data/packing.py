"""How the samples of an optimizer step become micro-batches, from their lengths alone (method.md, section 2).

    max_length    each sample fills a row of the maximum length          a a a . . . . .
                                                                         b b . . . . . .
    dynamic_pad   rows as long as the micro-batch's longest sample       a a a
                                                                         b b .
    dynamic_pack  one flat row, end to end, nothing padded               a a a b b

Which samples share a micro-batch does not change what is learned: the loss is the mean over the step's answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from codetune.project import PadMode


def micro_batches(
    lengths: Sequence[int], pad_mode: PadMode, samples_per_micro_batch: int
) -> tuple[tuple[int, ...], ...]:
    """Positions in `lengths` of each micro-batch's samples.

    Padded: in drawn order. Packed: as many micro-batches, but dealt longest first to the one with the fewest tokens,
    because peak memory is the fullest one's.

    >>> micro_batches([5, 5, 1, 1], "dynamic_pad", 2), micro_batches([5, 5, 1, 1], "dynamic_pack", 2)
    (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    """
    if pad_mode != "dynamic_pack":
        positions = range(len(lengths))
        return tuple(
            tuple(positions[start : start + samples_per_micro_batch])
            for start in range(0, len(lengths), samples_per_micro_batch)
        )
    count = -(-len(lengths) // samples_per_micro_batch)
    dealt: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        lightest = tokens.index(min(tokens))
        dealt[lightest].append(position)
        tokens[lightest] += lengths[position]
    return tuple(tuple(sorted(positions)) for positions in dealt)


def tokens_seen(lengths: Sequence[int], pad_mode: PadMode, max_length: int) -> int:
    """Tokens of one micro-batch as the model sees it, padding included.

    >>> [tokens_seen([3, 2], mode, 8) for mode in ("max_length", "dynamic_pad", "dynamic_pack")]
    [16, 6, 5]
    """
    match pad_mode:
        case "max_length":
            return max_length * len(lengths)
        case "dynamic_pad":
            return max(lengths) * len(lengths)
        case "dynamic_pack":
            return sum(lengths)
        case "paper_pack":
            raise AssertionError("paper_pack is refused when the project is read")
