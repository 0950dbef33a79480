"""Tokens -> what scoring and training cost, and what a selection saves, in FLOPs (docs/method.md, section 4).

A forward pass takes 2 FLOPs a weight and token, a training step 6 (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1), or
4 where the weights are frozen and adapters are trained. Scoring passes over prompt and answer once, and over the answer
alone once, or twice with the empty prompt. Attention is not counted, nor is embedding: the usual encoder has a fiftieth
of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from codetune.selection.row_vectors import Floats, RowIndices

FORWARD, TRAINING = 2, 6  # FLOPs a weight and token
SHOWN_EPOCHS = (1, 3)
SMALLER_SCORERS = (1.0, 1 / 5, 1 / 20)  # of the weights of the scorer that the project has
FEWER_EPOCHS = (1, 2)


class CostDocument(TypedDict):
    """A `SelectionCost` as JSON."""

    tokens: int
    tokens_taken: int
    flops_per_weight: dict[str, int]
    scorer_weights: int | None
    flops: dict[str, float] | None
    saved_share: dict[str, float]  # number of epochs -> share
    break_even_epochs: float | None


@dataclass(frozen=True, slots=True)
class SelectionCost:
    """Tokens of prompts and answers, and FLOPs; FLOPs a weight where the model that scores and the one that is trained
    count as equally large.

    >>> cost = SelectionCost(100, 40, scoring_flops(1, 100, 60, 1), training_flops(1, 100), training_flops(1, 40))
    >>> round(cost.saved_share(3), 2), round(cost.break_even_epochs, 2)
    (0.42, 0.89)
    """

    tokens: float  # of all rows (with a score)
    tokens_taken: float
    scoring: float  # all passes
    training: float  # an epoch on all rows
    training_taken: float  # an epoch on the selection

    @property
    def break_even_epochs(self) -> float | None:
        """The epochs of training after which the selection has saved what it cost; None where it saves nothing."""
        saved = self.training - self.training_taken
        return self.scoring / saved if saved > 0 else None

    def saved_share(self, epochs: float) -> float:
        """The share of the training on all rows that is saved in so many epochs, scoring included. Below 0 the
        selection costs more than it saves."""
        return 1 - self.training_taken / self.training - self.scoring / (epochs * self.training)

    def document(self, weights: int | None) -> CostDocument:
        """FLOPs a weight as JSON; `weights` are those of the model that scores, None where they are unknown."""
        flops: Mapping[str, float] = {
            "scoring": self.scoring,
            "training_epoch_on_all": self.training,
            "training_epoch_on_selection": self.training_taken,
        }
        return {
            "tokens": round(self.tokens),
            "tokens_taken": round(self.tokens_taken),
            "flops_per_weight": {name: round(value) for name, value in flops.items()},
            "scorer_weights": weights,
            "flops": None if weights is None else {name: value * weights for name, value in flops.items()},
            "saved_share": {str(epochs): self.saved_share(epochs) for epochs in SHOWN_EPOCHS},
            "break_even_epochs": self.break_even_epochs,
        }


@dataclass(frozen=True, slots=True)
class CostVariant:
    """The share of the whole training that would be saved with another scorer, or another length of the training."""

    scorer_share: float  # of the weights of the project's scorer
    epochs: float
    saved_share: float


def documented_cost(document: CostDocument) -> SelectionCost:
    """The cost that `SelectionCost.document` has written."""
    flops = document["flops_per_weight"]
    every, taken = flops["training_epoch_on_all"], flops["training_epoch_on_selection"]
    return SelectionCost(document["tokens"], document["tokens_taken"], flops["scoring"], every, taken)


def scoring_flops(weights: int, tokens: float, answer_tokens: float, answer_passes: int) -> float:
    """The FLOPs of scoring rows with so many tokens in all, and in their answers."""
    return FORWARD * float(weights) * (tokens + answer_passes * answer_tokens)


def training_flops(weights: int, tokens: float, *, is_full: bool = True) -> float:
    """The FLOPs of training on so many tokens, forward and backward."""
    return (TRAINING if is_full else TRAINING - FORWARD) * float(weights) * tokens


def variants(cost: SelectionCost, epochs: float) -> Sequence[CostVariant]:
    """What a smaller scorer and fewer epochs change."""
    lengths = sorted({*(float(length) for length in FEWER_EPOCHS if length < epochs), epochs})
    return [
        CostVariant(size, length, replace(cost, scoring=size * cost.scoring).saved_share(length))
        for size in SMALLER_SCORERS
        for length in lengths
    ]


def selection_cost(
    prompt_tokens: Floats, answer_tokens: Floats, taken: RowIndices, is_pair: NDArray[np.bool_], answer_passes: int
) -> SelectionCost | None:
    """The cost of a selection from columns [rows], NaN for rows without a score; None where no row has one. The
    shuffled pairs cost one more pass over prompt and answer."""
    both = prompt_tokens + answer_tokens
    tokens, tokens_taken = float(np.nansum(both)), float(np.nansum(both[taken]))
    if not tokens:
        return None
    scoring = scoring_flops(1, tokens, float(np.nansum(answer_tokens)), answer_passes)
    scoring += FORWARD * float(np.nansum(both[is_pair]))
    return SelectionCost(tokens, tokens_taken, scoring, training_flops(1, tokens), training_flops(1, tokens_taken))


def estimated_prompt_tokens(prompt_characters: Floats, answer_characters: Floats, answer_tokens: Floats) -> Floats:
    """Characters times the median of tokens over characters of the answers: select has no tokenizer, and of truncated
    answers fewer tokens were scored."""
    is_known = ~np.isnan(answer_tokens) & (answer_characters > 0)
    if not is_known.any():
        return np.full(len(prompt_characters), np.nan)
    found: Floats = prompt_characters * np.median(answer_tokens[is_known] / answer_characters[is_known])
    return found
