"""Blocks, refusals and scores; the scores of real rows against float64 arithmetic done by other means."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import example as example_of
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from codetune.data.source import read_examples
from codetune.data.tokens import Span
from codetune.model.likelihood import CausalScorer
from codetune.model.load import load_tokenizer
from codetune.project.sections import Dataset, Scoring
from codetune.records import Example, Message, Refusal, Score, content_id
from codetune.selection import score
from codetune.selection.score import Block, plan_blocks, score_block
from tests.model.builders import byte_tokenizer, tiny_model

LONGEST = 50  # tokens


class FakeScorer:
    """So many nats a token for the long contexts, one for the short."""

    window = 2048

    def __init__(self, conditional: float | None) -> None:
        self.conditional = conditional

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        return [self.conditional if span.start > 1 else 1.0 for span in spans]


def example(instruction: str, answer: str) -> Example:
    messages = (Message("user", instruction), Message("assistant", answer))
    return Example(content_id(messages), messages, "a:1")


def examples(lengths: Sequence[int]) -> list[Example]:
    return [example(f"{number}", "x" * length) for number, length in enumerate(lengths)]


def evol(shared_data: Path, count: int) -> list[Example]:
    path = str(shared_data / "instruct" / "evol-round1.json")
    rows = read_examples(Dataset(path=path, instruction="instruction", response="output"), path)
    return [row for row in islice(rows, count) if isinstance(row, Example)]


@example_of([0, 0, 0, 0, 0, 0, 0, 45, 57, 126, 125], 171)  # as long in characters, not in estimated tokens
@given(st.lists(st.integers(0, 200), max_size=60), st.integers(1, 300))
def test_every_row_is_in_one_block_whatever_the_budget(lengths: list[int], budget: int) -> None:
    rows = examples(lengths)
    blocks = list(plan_blocks(rows, budget, LONGEST))
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert sorted(row.id for block in blocks for row in block.examples) == sorted(row.id for row in rows)
    for block in blocks:
        estimates = [score.estimated_tokens(row, LONGEST) for row in block.examples]
        assert sum(estimates) <= budget or len(estimates) == 1
        characters = [score.characters_of_pair(row) for row in block.examples]
        assert characters == sorted(characters)


def test_the_estimate_of_real_rows_is_on_the_side_of_too_many(shared_data: Path) -> None:
    rows = evol(shared_data, 300)
    for name in ("deepseek-coder-6.7b-instruct", "codellama"):
        tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
        tokenised = [row for row in score.tokenise(rows, tokenizer, 10**6, Scoring()) if not isinstance(row, Refusal)]
        tokens = sum(len(row.conditional.tokens) + len(row.unconditional.tokens) for row in tokenised)
        assert tokens < sum(score.estimated_tokens(row, 2048) for row in rows) < 1.5 * tokens


def test_blocks_do_not_depend_on_the_order_of_rows_within_a_window() -> None:
    rows = examples([5, 5, 9, 1, 30, 5])
    assert list(plan_blocks(rows, 12, LONGEST)) == list(plan_blocks(rows[::-1], 12, LONGEST))


def test_a_window_is_all_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "WINDOW_ROWS", 3)
    rows = examples([9, 8, 7, 3, 2, 1])
    taken = []
    blocks = plan_blocks((taken.append(row) or row for row in rows), 10**6, LONGEST)
    assert next(blocks) == Block(0, (rows[2], rows[1], rows[0]))
    assert len(taken) == 3
    assert next(blocks) == Block(1, (rows[5], rows[4], rows[3]))


def test_a_row_has_the_formula_of_its_two_likelihoods() -> None:
    tokenizer = byte_tokenizer(bos=True)
    row = example("Add.", "def add(a, b):")
    (result,) = score_block([row], tokenizer, FakeScorer(0.5), Scoring())
    tokens = len(tokenizer("def add(a, b):").input_ids)
    assert result == Score(row.id, pytest.approx(0.6065306597), 0.5, 1.0, tokens, False)


@pytest.mark.parametrize(
    ("conditional", "reason"),
    [
        (None, "out of memory, alone in its batch"),
        (math.nan, "likelihood is not a finite number"),
        (math.inf, "likelihood is not a finite number"),
        (900.0, "difficulty is not a finite number above 0"),
    ],
)
def test_a_failure_is_a_refusal_and_never_a_number(conditional: float | None, reason: str) -> None:
    row = example("Add.", "def add(a, b):")
    assert score_block([row], byte_tokenizer(bos=True), FakeScorer(conditional), Scoring()) == [
        Refusal(row.id, reason, "a:1")
    ]


def test_results_keep_the_order_of_their_rows_around_a_refusal() -> None:
    rows = [example("Add.", "a + b"), example("x" * 500, "y"), example("Sub.", "a - b")]
    results = score_block(rows, byte_tokenizer(bos=True), FakeScorer(0.5), Scoring(max_length=100))
    assert [result.id for result in results] == [row.id for row in rows]
    assert results[1] == Refusal(rows[1].id, "prompt leaves no room for the answer in 100 tokens", "a:1")


def test_a_models_window_bounds_what_the_project_asks_for() -> None:
    scorer = FakeScorer(0.5)
    scorer.window = 40
    (result,) = score_block([example("Add.", "a + b" * 40)], byte_tokenizer(bos=True), scorer, Scoring())
    assert isinstance(result, Score)
    assert result.truncated


@pytest.mark.parametrize("name", ["deepseek-coder-6.7b-instruct", "codellama"])
def test_real_rows_agree_with_float64_arithmetic_whatever_their_batch(shared_data: Path, name: str) -> None:
    torch.set_num_threads(1)
    path = shared_data / "tokenizers" / name
    tokenizer = load_tokenizer(path)
    model = tiny_model("llama", len(tokenizer), hidden=32)
    rows = sorted(evol(shared_data, 36), key=score.characters_of_pair)[:30]
    settings = Scoring(max_length=300)
    results = score_block(rows, tokenizer, CausalScorer(model, 4096), settings)
    alone = [score_block([row], tokenizer, CausalScorer(model, 4096), settings)[0] for row in rows]
    assert alone == results
    exact, reference = copy.deepcopy(model).double(), Tokenizer.from_file(str(path / "tokenizer.json"))
    for row, result in zip(rows, results, strict=True):
        expected = oracle(exact, reference, tokenizer.bos_token_id, row)
        assert isinstance(result, Score)
        assert result.nll_conditional == pytest.approx(expected[0], rel=1e-5)
        assert result.nll_unconditional == pytest.approx(expected[1], rel=1e-5)
        assert result.ifd == pytest.approx(math.exp(expected[0]) / math.exp(expected[1]), rel=1e-5)
        assert result.answer_tokens == expected[2]


def oracle(exact: torch.nn.Module, reference: Tokenizer, bos: int, row: Example) -> tuple[float, float, int]:
    prompt = f"Question:\n{row.instruction}\n\nAnswer:\n"
    whole = reference.encode(prompt + row.answer, add_special_tokens=False)
    cut = next(index for index, (start, _) in enumerate(whole.offsets) if start >= len(prompt))
    answer = whole.ids[cut:][: 300 - 1 - cut]
    means = []
    for context in ([bos, *whole.ids[:cut]], [bos]):
        with torch.inference_mode():
            logits = exact(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        means.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer))))
    return means[0], means[1], len(answer)


@pytest.mark.parametrize(("name", "is_sentencepiece"), [("deepseek-coder-6.7b-instruct", False), ("codellama", True)])
def test_the_published_way_gives_the_same_where_it_means_the_same_tokens(
    shared_data: Path, name: str, is_sentencepiece: bool
) -> None:
    """The published scripts tokenise prompt and answer together for the one pass, the answer by itself for the other.
    Where an answer has the same tokens both times, and nothing is cut, their IFD is ours. SentencePiece never has: an
    answer by itself begins with a white space that it does not have after its prompt."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    model = tiny_model("llama", len(tokenizer), hidden=32)
    rows = sorted(evol(shared_data, 36), key=score.characters_of_pair)[:30]
    results = score_block(rows, tokenizer, CausalScorer(model, 4096), Scoring(max_length=300))
    for row, result in zip(rows, results, strict=True):
        assert isinstance(result, Score)
        published, same_tokens = published_ifd(model, tokenizer, row, 300)
        assert same_tokens != is_sentencepiece
        means_the_same = same_tokens and not result.truncated
        assert (result.ifd == pytest.approx(published, rel=1e-5)) == means_the_same


def published_ifd(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, row: Example, longest: int
) -> tuple[float, bool]:
    """One row at a time: the mean loss after the prompt, and of the answer alone; and whether both were of the same
    tokens. What is too long is cut at the end of each."""
    bos, prompt = [tokenizer.bos_token_id], f"Question:\n{row.instruction}\n\nAnswer:\n"
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, prompt + row.answer, row.answer)]
    before = len(ids[0]) + 1
    perplexities = []
    for tokens, first in ((bos + ids[1], before), (bos + ids[2], 1)):
        kept = torch.tensor([tokens[:longest]])
        with torch.inference_mode():
            logits = model(kept).logits[0, first - 1 : -1]
        perplexities.append(math.exp(torch.nn.functional.cross_entropy(logits, kept[0, first:])))
    return perplexities[0] / perplexities[1], (bos + ids[1])[before:] == ids[2]


def test_every_row_of_a_real_file_is_planned_once(shared_data: Path) -> None:
    text = json.loads((shared_data / "instruct" / "evol-round1.json").read_text(encoding="utf-8"))
    blocks = list(plan_blocks(evol(shared_data, 10**6), 8192, 2048))
    assert sum(len(block.examples) for block in blocks) <= len(text)
    assert max(len(block.examples) for block in blocks) > 8
