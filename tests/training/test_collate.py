"""Tensors of a step: every learned token at its place, every token counted, nobody else's tokens in sight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codetune.data.token_cache import Sample
from codetune.training.collate import Collator
from tests.training.samples import SAMPLES, collated

MODES = ["max_length", "dynamic_pad", "paper_pack", "dynamic_pack"]
# tokens of a: 1 2 3 (learned: 3), of b: 4 5 (learned: 5), of c: 6 7 8 9 (learned: 7 and 9)
ROWS = [
    Sample("a", np.array([1, 2, 3]), np.array([False, False, True])),
    Sample("b", np.array([4, 5]), np.array([True, True])),
    Sample("c", np.array([6, 7, 8, 9]), np.array([False, True, False, True])),
]


def test_padded_rows_by_hand() -> None:
    (filled,) = Collator("max_length", 5, True, 0)([ROWS[:2]])["micro_batches"]
    assert filled["inputs"]["input_ids"].tolist() == [[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]]
    assert (filled["positions"].tolist(), filled["targets"].tolist()) == ([1, 5], [3, 5])
    (padded,) = Collator("dynamic_pad", 5, True, 0)([ROWS[:2]])["micro_batches"]
    assert padded["inputs"]["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert (padded["positions"].tolist(), padded["targets"].tolist()) == ([1, 3], [3, 5])
    assert (padded["rows"], padded["row_ends"]) == (["a", "b"], [1, 2])


@pytest.mark.parametrize(
    ("isolated", "places", "segments"),
    [(True, [0, 1, 2, 0, 1, 0, 1, 2, 3], (3, 2, 4)), (False, [*range(5), *range(4)], (5, 4))],
)
def test_a_flat_row_by_hand(isolated: bool, places: list[int], segments: tuple[int, ...]) -> None:
    # Without isolation a stretch is of 6 tokens at most: a and b see each other, c does not fit.
    (packed,) = Collator("dynamic_pack", 6, isolated, 0)([ROWS])["micro_batches"]
    assert packed["inputs"]["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert packed["inputs"]["position_ids"].tolist() == [places]
    assert packed["inputs"]["segments"] == segments
    assert (packed["positions"].tolist(), packed["targets"].tolist()) == ([1, 3, 5, 7], [3, 5, 7, 9])


@pytest.mark.parametrize(
    ("isolated", "places", "segments"),
    [(True, [0, 1, 0, 1, 2, 0, 1, 2, 3, 0], (2, 3, 4, 1)), (False, [*range(5), *range(4), 0], (5, 4, 1))],
)
def test_the_papers_rows_by_hand(isolated: bool, places: list[int], segments: tuple[int, ...]) -> None:
    # shortest first: b and a make a row of 5, c one of 4, which is padded by 1
    (packed,) = Collator("paper_pack", 6, isolated, 0)([ROWS])["micro_batches"]
    assert packed["inputs"]["input_ids"].tolist() == [[4, 5, 1, 2, 3, 6, 7, 8, 9, 0]]
    assert packed["inputs"]["position_ids"].tolist() == [places]
    assert packed["inputs"]["segments"] == segments
    assert (packed["positions"].tolist(), packed["targets"].tolist()) == ([0, 3, 5, 7], [5, 3, 7, 9])
    assert (packed["rows"], packed["row_ends"]) == (["b", "a", "c"], [1, 2, 4])


@pytest.mark.parametrize(
    ("mode", "seen"),
    # dynamic_pad: 17 17 | 30 30 | 9; paper_pack: 5 + 17 | 2 + 30 | 9
    [("max_length", 5 * 40), ("dynamic_pad", 34 + 60 + 9), ("paper_pack", 22 + 32 + 9), ("dynamic_pack", 63)],
)
def test_tokens_are_counted_as_the_model_sees_them(mode: str, seen: int) -> None:
    (step,) = collated(mode)
    assert (step["samples"], step["tokens"], step["tokens_seen"]) == (5, 63, seen)
    assert step["token_pairs"] == 17**2 + 5**2 + 30**2 + 2**2 + 9**2
    assert sum(batch["inputs"]["input_ids"].numel() for batch in step["micro_batches"]) == seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_learned_tokens_among_them(mode: str, processes: int) -> None:
    def learned(steps: list[dict[str, torch.Tensor]]) -> list[int]:
        return sorted(token for step in steps for token in step["shift_labels"].tolist())

    assert learned(collated(mode, processes=processes)) == learned(collated(mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_process_without_a_sample_has_something_to_compute_and_nothing_to_learn(mode: str) -> None:
    step = Collator(mode, 40, True, 2)([[SAMPLES[0]], []])
    assert (step["samples"], step["tokens"]) == (1, 17)
    assert step["tokens_seen"] == (40 if mode == "max_length" else 17)
    idle = step["micro_batches"][1]
    assert idle["inputs"]["input_ids"].tolist() == [[2, 2]]
    assert (len(idle["positions"]), len(idle["targets"]), idle["rows"]) == (0, 0, [])


def test_the_samples_are_left_as_they_are() -> None:
    before = [(one.tokens.copy(), one.learned.copy()) for one in SAMPLES]
    for mode in MODES:
        collated(mode)
    for one, (tokens, learned) in zip(SAMPLES, before, strict=True):
        assert (one.tokens == tokens).all()
        assert (one.learned == learned).all()
