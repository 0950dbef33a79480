"""The formula, refusals and scores; the scores of real rows against float64 arithmetic done by other means."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from codetune.data.source import read_examples
from codetune.data.tokens import Span
from codetune.model.likelihood import CausalScorer
from codetune.model.load import load_tokenizer
from codetune.project.sections import Dataset, Scoring
from codetune.records import Example, Message, Refusal, Score, content_id
from codetune.selection.blocks import pair_characters
from codetune.selection.score import Scorer, ScoringPasses, ifd, score_tokens, tokenize
from codetune.selection.selective_ifd import selective_ifd
from tests.model.builders import byte_tokenizer, tiny_model


class FakeScorer:
    """So many nats a token for the long contexts, one for the short."""

    window = 2048

    def __init__(self, conditional: float | None) -> None:
        self.conditional = conditional

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        return [self.conditional if span.start > 1 else 1.0 for span in spans]

    def token_nll(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        counts = [len(span.tokens) - span.start for span in spans]
        return [
            None if nll is None else torch.full((count,), nll)
            for nll, count in zip(self.nll(spans), counts, strict=True)
        ]


def example(instruction: str, answer: str) -> Example:
    messages = (Message("user", instruction), Message("assistant", answer))
    return Example(content_id(messages), messages, "a:1")


def evol(shared_data: Path, count: int) -> list[Example]:
    path = str(shared_data / "instruct" / "evol-round1.json")
    rows = read_examples(Dataset(path=path, instruction="instruction", response="output"), path)
    return [row for row in islice(rows, count) if isinstance(row, Example)]


def score_rows(
    rows: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    settings: Scoring,
    partners: Mapping[str, Example] | None = None,
    known: Mapping[str, Score] | None = None,
    *,
    by_token: bool = False,
) -> list[Score | Refusal]:
    passes = tokenize(rows, tokenizer, scorer.window, settings, partners or {}, known or {}, by_token=by_token)
    return score_tokens(passes, scorer)


def test_a_question_that_helps_makes_the_answer_easier() -> None:
    # Alone 1.0 nats a token, given the question 0.5: exp(0.5) / exp(1.0) = exp(-0.5)
    assert ifd(0.5, 1.0) == pytest.approx(0.6065306597)
    assert ifd(1.0, 1.0) == 1.0


@given(st.floats(0, 300), st.floats(0, 300))
def test_it_is_the_ratio_of_the_perplexities(conditional: float, unconditional: float) -> None:
    assert ifd(conditional, unconditional) == pytest.approx(math.exp(conditional) / math.exp(unconditional), rel=1e-9)


@pytest.mark.parametrize(
    ("conditional", "unconditional"),
    [(math.nan, 1), (1, math.nan), (math.inf, 1), (1, math.inf), (math.inf, math.inf), (800, 0), (0, 800)],
)
def test_what_is_no_positive_number_is_no_score(conditional: float, unconditional: float) -> None:
    assert ifd(conditional, unconditional) is None


def test_a_row_has_the_formula_of_its_two_likelihoods() -> None:
    tokenizer = byte_tokenizer(bos=True)
    row = example("Add.", "def add(a, b):")
    (result,) = score_rows([row], tokenizer, FakeScorer(0.5), Scoring())
    tokens = len(tokenizer("def add(a, b):").input_ids)
    assert result == Score(
        id=row.id,
        ifd=pytest.approx(0.6065306597),
        pmi=0.0,
        nll_conditional=0.5,
        nll_unconditional=1.0,
        nll_empty=0.5,
        answer_tokens=tokens,
        truncated=False,
    )


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
    assert score_rows([row], byte_tokenizer(bos=True), FakeScorer(conditional), Scoring()) == [
        Refusal(row.id, reason, "a:1")
    ]


def test_results_keep_the_order_of_their_rows_around_a_refusal() -> None:
    rows = [example("Add.", "a + b"), example("x" * 500, "y"), example("Sub.", "a - b")]
    results = score_rows(rows, byte_tokenizer(bos=True), FakeScorer(0.5), Scoring(max_length=100))
    assert [result.id for result in results] == [row.id for row in rows]
    assert results[1] == Refusal(rows[1].id, "prompt leaves no room for the answer in 100 tokens", "a:1")


def test_a_models_window_bounds_what_the_project_asks_for() -> None:
    scorer = FakeScorer(0.5)
    scorer.window = 40
    (result,) = score_rows([example("Add.", "a + b" * 40)], byte_tokenizer(bos=True), scorer, Scoring())
    assert isinstance(result, Score)
    assert result.truncated


@pytest.mark.parametrize("name", ["deepseek-coder-6.7b-instruct", "codellama"])
def test_real_rows_agree_with_float64_arithmetic_whatever_their_batch(shared_data: Path, name: str) -> None:
    torch.set_num_threads(1)
    path = shared_data / "tokenizers" / name
    tokenizer = load_tokenizer(path)
    model = tiny_model("llama", len(tokenizer), hidden=32)
    rows = sorted(evol(shared_data, 36), key=pair_characters)[:30]
    settings = Scoring(max_length=300)
    partners = {row.id: other for row, other in zip(rows[::2], rows[1::2], strict=True)}
    results = score_rows(rows, tokenizer, CausalScorer(model, 4096), settings, partners)
    alone = [score_rows([row], tokenizer, CausalScorer(model, 4096), settings, partners)[0] for row in rows]
    assert alone == results
    exact, reference = copy.deepcopy(model).double(), Tokenizer.from_file(str(path / "tokenizer.json"))
    for row, result in zip(rows, results, strict=True):
        partner = partners.get(row.id)
        expected, answer_tokens = oracle(exact, reference, tokenizer.bos_token_id, row, partner)
        assert isinstance(result, Score)
        assert result.nll_conditional == pytest.approx(expected[0], rel=1e-5)
        assert result.nll_unconditional == pytest.approx(expected[1], rel=1e-5)
        assert result.nll_empty == pytest.approx(expected[2], rel=1e-5)
        assert result.pmi == result.nll_empty - result.nll_conditional
        assert result.nll_shuffled == (pytest.approx(expected[3], rel=1e-5) if partner else None)
        assert result.shuffled_with == (partner.id if partner else None)
        assert result.ifd == pytest.approx(math.exp(expected[0]) / math.exp(expected[1]), rel=1e-5)
        assert result.answer_tokens == answer_tokens


def test_the_tokens_of_real_rows_give_s_ifd_as_float64_arithmetic_does(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "deepseek-coder-6.7b-instruct"
    tokenizer, reference = load_tokenizer(path), Tokenizer.from_file(str(path / "tokenizer.json"))
    model = tiny_model("llama", len(tokenizer), hidden=32)
    rows, settings = sorted(evol(shared_data, 36), key=pair_characters)[:10], Scoring(max_length=300)
    results = score_rows(rows, tokenizer, CausalScorer(model, 4096), settings, by_token=True)
    without = score_rows(rows, tokenizer, CausalScorer(model, 4096), settings)
    assert [replace(row, token_differences=None) for row in results] == without
    exact = copy.deepcopy(model).double()
    expected = [token_oracle(exact, reference, tokenizer.bos_token_id, row) for row in rows]
    kept = [np.frombuffer(row.token_differences, dtype="<f4") for row in results if isinstance(row, Score)]
    assert [len(differences) for differences in kept] == [row.answer_tokens for row in results]
    for share in (0.5, 0.75):
        limit = np.percentile(np.abs(np.concatenate(expected)), 100 * (1 - share))
        by_hand = [np.exp(row[np.abs(row) > limit].mean()) for row in expected]
        assert selective_ifd(lambda: kept, len(kept), share) == pytest.approx(by_hand, rel=1e-5)


def token_oracle(exact: torch.nn.Module, reference: Tokenizer, bos: int, row: Example) -> NDArray[np.float64]:
    """The differences of the tokens of an answer between the passes with and without the instruction."""
    prompt = f"Question:\n{row.instruction}\n\nAnswer:\n"
    whole = reference.encode(prompt + row.answer, add_special_tokens=False)
    cut = next(index for index, (start, _) in enumerate(whole.offsets) if start >= len(prompt))
    answer, losses = whole.ids[cut:][: 300 - 1 - cut], []
    for context in ([bos, *whole.ids[:cut]], [bos]):
        with torch.inference_mode():
            logits = exact(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none").numpy())
    return losses[0] - losses[1]


def test_tokens_that_are_asked_for_later_change_no_value_that_is_known() -> None:
    tokenizer, row = byte_tokenizer(bos=True), example("Add.", "a + b")
    (before,) = score_rows([row], tokenizer, FakeScorer(0.5), Scoring())
    assert isinstance(before, Score)
    # The scorer says 0.25 now: the tokens have that, and what was measured before stays.
    (after,) = score_rows([row], tokenizer, FakeScorer(0.25), Scoring(), known={row.id: before}, by_token=True)
    assert after == replace(before, token_differences=np.full(before.answer_tokens, -0.75, dtype="<f4").tobytes())
    (again,) = tokenize([row], tokenizer, 2048, Scoring(), {}, {row.id: after}, by_token=True)
    assert isinstance(again, ScoringPasses)
    assert not again.spans


@pytest.mark.parametrize("conditional", [None, math.nan])
@pytest.mark.parametrize("is_known", [False, True], ids=["new row", "known score"])
def test_tokens_that_cannot_be_measured_are_a_refusal(is_known: bool, conditional: float | None) -> None:
    tokenizer, row = byte_tokenizer(bos=True), example("Add.", "a + b")
    scores = score_rows([row], tokenizer, FakeScorer(0.5), Scoring()) if is_known else []
    known = {score.id: score for score in scores}
    (found,) = score_rows([row], tokenizer, FakeScorer(conditional), Scoring(), known=known, by_token=True)
    assert isinstance(found, Refusal)


def oracle(
    exact: torch.nn.Module, reference: Tokenizer, bos: int, row: Example, partner: Example | None
) -> tuple[list[float], int]:
    prompt = f"Question:\n{row.instruction}\n\nAnswer:\n"
    whole = reference.encode(prompt + row.answer, add_special_tokens=False)
    cut = next(index for index, (start, _) in enumerate(whole.offsets) if start >= len(prompt))
    answer = whole.ids[cut:][: 300 - 1 - cut]
    means = []
    contexts = [[bos, *whole.ids[:cut]], [bos]]
    for instruction in ("", *([partner.instruction] if partner else [])):
        other = reference.encode(f"Question:\n{instruction}\n\nAnswer:\n", add_special_tokens=False).ids
        room = 300 - 1 - len(answer)
        contexts.append([bos, *other[-room:]])
    for context in contexts:
        with torch.inference_mode():
            logits = exact(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        means.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer))))
    return means, len(answer)


def test_what_a_score_knows_already_is_not_measured_again() -> None:
    tokenizer, rows = byte_tokenizer(bos=True), [example("Add.", "a + b"), example("Subtract.", "a - b")]
    (before, after) = score_rows(rows, tokenizer, FakeScorer(0.5), Scoring(empty_prompt=False))
    assert isinstance(before, Score)
    partners = {row.id: rows[0] for row in rows}
    # The scorer says 0.25 now: that is what the added values have, and the others keep theirs.
    (extended,) = score_rows(rows[1:], tokenizer, FakeScorer(0.25), Scoring(), partners, {rows[1].id: after})
    assert extended == replace(after, nll_empty=0.25, pmi=-0.25, nll_shuffled=0.25, shuffled_with=rows[0].id)


def test_an_instruction_of_another_row_that_leaves_no_room_loses_its_beginning() -> None:
    tokenizer, row, long = byte_tokenizer(bos=True), example("Add.", "a + b"), example("x" * 500, "y")
    (passes,) = tokenize([row], tokenizer, 60, Scoring(), {row.id: long}, {})
    assert isinstance(passes, ScoringPasses)
    shuffled = passes.spans["nll_shuffled"]
    assert len(shuffled.tokens) == 60
    assert shuffled.tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(shuffled.tokens[1:]).endswith("xxx\n\nAnswer:\na + b")


def test_another_rows_instruction_that_takes_too_much_memory_is_no_refusal() -> None:
    tokenizer, row = byte_tokenizer(bos=True), example("Add.", "a + b")

    class Full(FakeScorer):
        def nll(self, spans: Sequence[Span]) -> list[float | None]:
            return [*super().nll(spans[:-1]), None]

    (result,) = score_rows([row], tokenizer, Full(0.5), Scoring(), {row.id: example("Sub.", "a - b")})
    assert isinstance(result, Score)
    assert (result.nll_empty, result.nll_shuffled, result.shuffled_with) == (0.5, None, None)


@pytest.mark.parametrize(("name", "is_sentencepiece"), [("deepseek-coder-6.7b-instruct", False), ("codellama", True)])
def test_the_published_way_gives_the_same_where_it_means_the_same_tokens(
    shared_data: Path, name: str, is_sentencepiece: bool
) -> None:
    """The published scripts tokenize prompt and answer together for the one pass, the answer by itself for the other.
    Where an answer has the same tokens both times, and nothing is cut, their IFD is ours. SentencePiece never has: an
    answer by itself begins with a white space that it does not have after its prompt."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    model = tiny_model("llama", len(tokenizer), hidden=32)
    rows = sorted(evol(shared_data, 36), key=pair_characters)[:30]
    results = score_rows(rows, tokenizer, CausalScorer(model, 4096), Scoring(max_length=300))
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
