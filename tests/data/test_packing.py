"""Micro-batches from lengths: nothing lost, nothing twice, nothing padded where nothing need be, no process waiting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from codetune.data.packing import MicroBatchPlan, next_fit, pack, sample_cost, split_into_micro_batches
from codetune.data.source import read_examples
from codetune.data.tokens import TrainingTokens, training_tokens
from codetune.model.load import load_tokenizer
from codetune.project.sections import Dataset
from codetune.records import Refusal

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
MODES = ["max_length", "dynamic_pad", "paper_pack", "dynamic_pack"]
PROCESSES = st.integers(1, 5)


def plan(mode: str, samples: int, processes: int = 1, sort: bool = False, hidden_size: int = 8) -> MicroBatchPlan:
    return MicroBatchPlan(mode, samples, processes, sort, hidden_size)


def tokens_seen(lengths: Sequence[int], mode: str, max_length: int) -> int:
    """Tokens of one micro-batch as the model sees it, padding included."""
    return sum(lengths) + sum(row.padding for row in pack(lengths, mode, max_length))


@given(LENGTHS, st.integers(1, 9), PROCESSES, st.sampled_from(MODES), st.booleans())
def test_every_sample_is_in_one_micro_batch_of_one_process(
    lengths: list[int], samples: int, processes: int, mode: str, sort: bool
) -> None:
    micro_batches = split_into_micro_batches(lengths, plan(mode, samples, processes, sort))
    assert sorted(at for batches in micro_batches for batch in batches for at in batch) == list(range(len(lengths)))
    # As many micro-batches for each: ZeRO and FSDP meet in every one of them.
    assert [len(batches) for batches in micro_batches] == [-(-len(lengths) // (samples * processes))] * processes
    if mode != "dynamic_pack":
        assert all(len(batch) <= samples for batches in micro_batches for batch in batches)


@given(LENGTHS, st.integers(1, 9), PROCESSES, st.sampled_from(MODES), st.booleans())
def test_no_process_is_idle_while_there_is_a_sample_for_it(
    lengths: list[int], samples: int, processes: int, mode: str, sort: bool
) -> None:
    micro_batches = split_into_micro_batches(lengths, plan(mode, samples, processes, sort))
    assert sum(any(batches) for batches in micro_batches) == min(processes, len(lengths))


@given(LENGTHS, st.integers(1, 9), PROCESSES)
def test_packed_micro_batches_and_processes_differ_by_the_cost_of_a_sample_at_most(
    lengths: list[int], samples: int, processes: int
) -> None:
    micro_batches = split_into_micro_batches(lengths, plan("dynamic_pack", samples, processes))
    costs = [[sum(sample_cost(lengths[at], 8) for at in batch) for batch in batches] for batches in micro_batches]
    dearest = max(sample_cost(length, 8) for length in lengths)
    each = [value for batches in costs for value in batches]
    assert max(each) - min(each) <= dearest
    totals = [sum(batches) for batches in costs]
    assert max(totals) - min(totals) <= dearest


def test_real_lengths_are_balanced_to_a_part_in_a_hundred() -> None:
    # Lengths as of instruction data, 512 samples a step, on 8 processes of 4 micro-batches each.
    lengths = np.random.default_rng(0).lognormal(5.9, 0.7, 512).clip(20, 2048).astype(int).tolist()
    micro_batches = split_into_micro_batches(lengths, plan("dynamic_pack", 16, 8, hidden_size=4096))
    tokens = [sum(lengths[at] for at in batch) for batches in micro_batches for batch in batches]
    assert max(tokens) < 1.01 * sum(tokens) / len(tokens)


def test_a_long_sample_costs_more_than_its_tokens() -> None:
    # attention: 12 * 8 * 40 + 40^2 = 5440 against 2 * (12 * 8 * 20 + 20^2) = 4640
    assert (sample_cost(40, 8), 2 * sample_cost(20, 8)) == (5440, 4640)
    # By tokens alone the last one would go to the first, as 40 = 20 + 20.
    assert split_into_micro_batches([40, 20, 20, 3], plan("dynamic_pack", 2)) == (((0,), (1, 2, 3)),)


@pytest.mark.parametrize("mode", ["max_length", "dynamic_pad", "paper_pack"])
def test_other_modes_keep_the_drawn_order_and_give_micro_batches_to_processes_in_turn(mode: str) -> None:
    lengths = [9, 1, 5, 2, 7]
    assert split_into_micro_batches(lengths, plan(mode, 2)) == (((0, 1), (2, 3), (4,)),)
    assert split_into_micro_batches(lengths, plan(mode, 1, 2)) == (((0,), (2,), (4,)), ((1,), (3,), ()))
    assert split_into_micro_batches(lengths, plan(mode, 2, sort=True)) == (((0, 4), (2, 3), (1,)),)


@given(LENGTHS, st.sampled_from(MODES))
def test_rows_hold_every_sample_once_and_are_no_longer_than_allowed(lengths: list[int], mode: str) -> None:
    rows = pack(lengths, mode, 50)
    assert sorted(at for row in rows for at in row.samples) == list(range(len(lengths)))
    filled = [sum(lengths[at] for at in row.samples) + row.padding for row in rows]
    assert max(filled) <= 50
    assert min(row.padding for row in rows) >= 0
    if mode != "dynamic_pack":
        assert len(set(filled)) == 1


@given(LENGTHS, st.sampled_from(MODES))
def test_packing_pads_nothing_and_padding_never_loses_a_token(lengths: list[int], mode: str) -> None:
    seen = {mode: tokens_seen(lengths, mode, 50) for mode in MODES}
    assert seen["dynamic_pack"] == sum(lengths)
    assert sum(lengths) <= seen["dynamic_pad"] <= seen["max_length"]
    assert sum(lengths) <= seen["paper_pack"] <= seen["max_length"]


@pytest.mark.parametrize(
    ("mode", "seen"), [("max_length", 24), ("dynamic_pad", 15), ("paper_pack", 10), ("dynamic_pack", 9)]
)
def test_tokens_seen_by_hand(mode: str, seen: int) -> None:
    # rows of 5, 3 and 1 tokens: 3 x 8; 3 x 5; 1 + 3 and 5, so 2 x 5; 5 + 3 + 1
    assert tokens_seen([5, 3, 1], mode, 8 if mode != "paper_pack" else 5) == seen


@pytest.mark.parametrize(
    ("mode", "seen"), [("max_length", 24), ("dynamic_pad", 12), ("paper_pack", 10), ("dynamic_pack", 9)]
)
def test_paper_pack_pads_to_the_longest_of_its_rows(mode: str, seen: int) -> None:
    # rows of 3, 2 and 4 tokens: 3 x 8; 3 x 4; 2 + 3 and 4, so 2 x 5 (maximum length 8); 3 + 2 + 4
    assert tokens_seen([3, 2, 4], mode, 8) == seen


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 50))
def test_next_fit_begins_a_bin_only_where_the_next_item_does_not_fit(lengths: list[int], capacity: int) -> None:
    bins = next_fit(iter(lengths), capacity)
    assert [index for one in bins for index in one] == list(range(len(lengths)))
    filled = [sum(lengths[one.start : one.stop]) for one in bins]
    assert all(tokens <= capacity or len(one) == 1 for one, tokens in zip(bins, filled, strict=True))
    next_items = [lengths[one.start] for one in bins[1:]]
    assert all(tokens + item > capacity for tokens, item in zip(filled, next_items, strict=False))


def test_the_papers_rows_are_filled_shortest_first_and_never_looked_at_again() -> None:
    # sorted: 1 2 5 6; 1 + 2 + 5 fill a row of 8; 6 begins the next, padded by 2
    rows = pack([6, 2, 5, 1], "paper_pack", 8)
    assert [(row.samples, row.padding) for row in rows] == [((3, 1, 2), 0), ((0,), 2)]


@pytest.fixture(scope="module")
def evol(shared_data: Path) -> list[int]:
    """Lengths of the Evol-Instruct rows as DeepSeek's tokenizer has them."""
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(shared_data / "tokenizers" / "deepseek-coder-6.7b-instruct")
    lengths = []
    for source in sorted((shared_data / "instruct").glob("evol-round*.json")):
        dataset = Dataset(path=str(source), instruction="instruction", response="output")
        for example in read_examples(dataset, str(source)):
            if isinstance(example, Refusal):
                continue
            tokens = training_tokens(tokenizer, "deepseek", example, 2048, "truncate", "all")
            assert isinstance(tokens, TrainingTokens)
            lengths.append(len(tokens.ids))
    return lengths


# docs/method.md, section 2; batches of 16, maximum length 2048.
@pytest.mark.parametrize(
    ("mode", "published", "tolerance"),
    [
        ("max_length", 0.775, 0.002),
        ("dynamic_pad", 0.629, 0.01),
        ("paper_pack", 0.164, 0.01),
        ("dynamic_pack", 0.0, 0.0),
    ],
)
def test_the_papers_table_on_real_lengths(evol: list[int], mode: str, published: float, tolerance: float) -> None:
    def padding(drawn: list[int]) -> float:
        batches = [drawn[start : start + 16] for start in range(0, len(drawn), 16)]
        return 1 - sum(drawn) / sum(tokens_seen(batch, mode, 2048) for batch in batches)

    # One draw is up to a point off another.
    rates = [padding(np.random.default_rng(seed).permutation(evol).tolist()) for seed in range(10)]
    assert np.mean(rates) == pytest.approx(published, abs=tolerance)
