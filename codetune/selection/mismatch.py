"""Scores -> the rows whose instruction is not told from another row's: mismatched pairs.

A mismatched pair looks hard to IFD, because any prompt at all makes an answer likelier than none. The test compares the
pmi of a row (what its instruction adds to an empty one) with the pmi of shuffled pairs: answers of a sample of rows,
each after the instruction of another row. Both are standardised for the length of the answer, because the mean over a
short answer varies more. docs/method.md, section 1, has the formulas. Says nothing about whether an answer is right:
the wrong answer to a similar task has a high pmi as well.

Axes: N rows, S shuffled pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from codetune.selection.row_vectors import Floats

FEWEST_PAIRS = 30  # shuffled ones; a quantile of fewer says little
BAND_PAIRS, MOST_BANDS = 15, 5  # shuffled pairs of similar length, from which a mean and a deviation are estimated
LOWER_QUANTILES = (0.25, 0.5)  # of the shuffled pairs: hardly any good row lies below
MOST_GOOD = 0.1  # share of the good rows that may be dropped
LEAST_CAUGHT = 0.5  # share of the shuffled pairs, below which the test has no power
MOST_MISMATCHED = 0.5  # share of the rows, above which the model is more likely blind than the data set wrong


class MismatchSummary(TypedDict):
    """The figures of the test as JSON."""

    pairs: int
    caught: float
    estimated_mismatched: float
    has_power: bool


@dataclass(frozen=True, slots=True)
class MismatchTest:
    """The result of the test, and how sharp it was."""

    limits: Floats  # [N] nats a token: a row with a lower pmi is mismatched
    pairs: int  # shuffled ones
    caught: float  # share of the shuffled pairs that the limits catch
    estimated: float  # share of mismatched rows in the data set, from the mixture

    @property
    def has_power(self) -> bool:
        return self.caught >= LEAST_CAUGHT and self.estimated <= MOST_MISMATCHED

    def summary(self) -> MismatchSummary:
        """The figures of the test, for people and for the `--json` document."""
        return {
            "pairs": self.pairs,
            "caught": self.caught,
            "estimated_mismatched": self.estimated,
            "has_power": self.has_power,
        }


def find_mismatched(pmi: Floats, answer_tokens: Floats, shuffled_pmi: Floats, level: float) -> MismatchTest:
    """Compares the pmi [N] of rows with that of the shuffled pairs among them (`shuffled_pmi` [N], NaN for rows outside
    of the sample). Rows without a score are NaN everywhere. The limit lies at the quantile 1 - `level` of the shuffled
    pairs, or lower where more than `MOST_GOOD` of the good rows would be dropped."""
    is_pair = ~np.isnan(shuffled_pmi)
    center, spread = _shuffled_moments(answer_tokens[is_pair], shuffled_pmi[is_pair], answer_tokens)  # [N] each
    pairs = np.sort((shuffled_pmi - center)[is_pair] / spread[is_pair])  # [S]
    rows = np.sort(((pmi - center) / spread)[~np.isnan(pmi)])
    estimated = min(1.0, *(_share_below(rows, np.quantile(pairs, q)) / q for q in LOWER_QUANTILES))
    limit = _limit(rows, pairs, estimated, level)
    return MismatchTest(center + limit * spread, len(pairs), _share_below(pairs, limit), estimated)


def _shuffled_moments(pair_tokens: Floats, pair_pmi: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the pmi of shuffled pairs with answers of `tokens` [N]: those of up to
    `MOST_BANDS` bands of answer length, with straight lines over the logarithm of the length between them."""
    order = np.lexsort([pair_pmi, pair_tokens])  # by length, and by pmi where that is equal
    bands = np.array_split(order, max(1, min(MOST_BANDS, len(order) // BAND_PAIRS)))
    lengths = [np.log(pair_tokens[band]).mean() for band in bands]
    centers = [pair_pmi[band].mean() for band in bands]
    spreads = [np.log(max(1e-9, pair_pmi[band].std())) for band in bands]
    asked = np.log(np.maximum(1, np.nan_to_num(tokens, nan=1.0)))
    return np.interp(asked, lengths, centers), np.exp(np.interp(asked, lengths, spreads))


def _limit(rows: Floats, pairs: Floats, estimated: float, level: float) -> float:
    """The quantile 1 - `level` of the pairs, or the highest lower pair below which lie at most `MOST_GOOD` of the good
    rows. With F the share of rows and F0 that of pairs below a limit, F - estimated * F0 of all rows are good and below
    it."""
    highest = float(np.quantile(pairs, 1 - level))
    candidates = np.append(pairs[pairs < highest], highest)
    below = np.searchsorted(rows, candidates) / max(1, len(rows))
    good = below - estimated * np.searchsorted(pairs, candidates) / len(pairs)
    possible = candidates[good <= MOST_GOOD * (1 - estimated)]
    return float(possible[-1]) if len(possible) else float(pairs[0])


def _share_below(values: Floats, limit: float) -> float:
    return float(np.searchsorted(values, limit) / max(1, len(values)))
