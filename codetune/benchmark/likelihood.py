"""Held-out rows and a model -> the model's loss on each row; losses -> the report of a model in nats a learned token,
and the comparison of two models on the same rows.

The tokens are those that `train` would learn from these rows, in the chat format of the training, for every model: so
the figure of the tuned model is the held-out loss of its training. Intervals are bootstraps over rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import TYPE_CHECKING, TypedDict

from codetune.benchmark.benchmarks import HOLDOUT
from codetune.benchmark.statistics import FEWEST_DIFFERING, bootstrap_ratio, is_told_apart, least_of_error
from codetune.errors import CodetuneError
from codetune.records import Refusal

if TYPE_CHECKING:
    from codetune.data.token_cache import TokenizedRows
    from codetune.model.likelihood import CausalScorer

ROWS_AT_ONCE = 256  # given to the scorer together
NO_MEMORY = "does not fit into the memory"


class LikelihoodReport(TypedDict):
    benchmark: str  # holdout
    model: str
    rows: int
    refused: dict[str, int]  # reason -> held-out rows without a figure
    tokens: int  # learned ones
    nats_per_token: float  # over all tokens of all rows
    interval_95: tuple[float, float]
    losses: dict[str, tuple[float, int]]  # row id -> nats over its learned tokens, and their number


class LikelihoodComparison(TypedDict):
    """The second model against the first, on the rows that both have."""

    models: list[str]
    rows: int
    difference: float  # nats a token; below 0 the second model is better
    interval_95: tuple[float, float]
    p_value: float  # two-sided, of a paired bootstrap over rows
    least_difference: float | None  # that these rows find with 80 % power; None where so few find none
    told_apart: bool  # significant, and no smaller than that


def measure(rows: TokenizedRows, scorer: CausalScorer) -> Iterator[tuple[str, float, int] | Refusal]:
    """For each row its id, the nats over its learned tokens, and their number. Raises CodetuneError where the model
    computes no finite number."""
    from codetune.data.tokens import Span  # loads transformers

    waiting = iter(rows)
    while some := list(islice(waiting, ROWS_AT_ONCE)):
        starts = [next(at for at, learned in enumerate(tokens.learned) if learned and at) for _, tokens in some]
        spans = [Span(tokens.ids, start) for (_, tokens), start in zip(some, starts, strict=True)]
        for (row_id, tokens), start, losses in zip(some, starts, scorer.token_nll(spans), strict=True):
            if losses is None:
                yield Refusal(row_id, NO_MEMORY, "")
            else:
                yield _loss_of_row(row_id, losses.tolist(), tokens.learned[start:])


def _loss_of_row(row_id: str, losses: Sequence[float], learned: Sequence[bool]) -> tuple[str, float, int]:
    own = [loss for loss, is_learned in zip(losses, learned, strict=True) if is_learned]
    nats = math.fsum(own)
    if not math.isfinite(nats):
        raise CodetuneError(
            f"The model computes no finite loss for the held-out row {row_id}. Expected: a number. Set model.dtype: "
            "float32, or evaluate another model"
        )
    return row_id, nats, len(own)


def report_likelihood(
    model: str, losses: Mapping[str, tuple[float, int]], refused: Mapping[str, int], seed: int
) -> LikelihoodReport:
    """The report of one model; `seed` draws the bootstrap."""
    nats, tokens = zip(*losses.values(), strict=True)
    found = bootstrap_ratio(nats, tokens, seed)
    return LikelihoodReport(
        benchmark=HOLDOUT,
        model=model,
        rows=len(losses),
        refused=dict(refused),
        tokens=sum(tokens),
        nats_per_token=found.difference,
        interval_95=(found.low, found.high),
        losses=dict(losses),
    )


def compare_likelihoods(reports: Sequence[LikelihoodReport], seed: int) -> list[LikelihoodComparison]:
    """Every two models. Nats a token can be compared only where both models cut a row into as many tokens; a pair whose
    tokenizers do not is left out."""
    return list(filter(None, (_compare(*pair, seed) for pair in combinations(reports, 2))))


def _compare(first: LikelihoodReport, second: LikelihoodReport, seed: int) -> LikelihoodComparison | None:
    before, after = first["losses"], second["losses"]
    common = [row for row in before if row in after]
    if not common or any(before[row][1] != after[row][1] for row in common):
        return None
    differences = [after[row][0] - before[row][0] for row in common]
    found = bootstrap_ratio(differences, [before[row][1] for row in common], seed)
    least = least_of_error(found.standard_error)
    return LikelihoodComparison(
        models=[first["model"], second["model"]],
        rows=len(common),
        difference=found.difference,
        interval_95=(found.low, found.high),
        p_value=found.p_value,
        least_difference=least if len(common) >= FEWEST_DIFFERING else None,
        told_apart=is_told_apart(found.difference, least, found.p_value, len(common)),
    )


def count_refusals(refusals: Iterable[Refusal]) -> dict[str, int]:
    """Reason -> rows."""
    counted: dict[str, int] = {}
    for refusal in refusals:
        counted[refusal.kind] = counted.get(refusal.kind, 0) + 1
    return counted
