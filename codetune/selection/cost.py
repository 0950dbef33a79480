"""Tokens -> what scoring and training cost, and what a selection saves.

A forward pass takes 2 FLOPs a weight and token, a training step 6 (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1).
Everything is a weight of the model: of the one that scores, or of the one that is trained. Embedding is not counted,
nor is attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetune.selection.row_vectors import Floats, RowIndices

FORWARD, TRAINING = 2, 6  # FLOPs a weight and token
SHOWN_EPOCHS = (1, 3)


@dataclass(frozen=True, slots=True)
class SelectionCost:
    """Estimated tokens of prompts and answers, and FLOPs a weight."""

    tokens: float  # of all rows with a score
    tokens_taken: float
    scoring: float  # all passes
    training: float  # an epoch on all rows with a score
    training_taken: float  # an epoch on the selection

    @property
    def break_even_epochs(self) -> float | None:
        """The epochs of training after which the selection has saved what it cost, if the model that scores is as large
        as the one that is trained; None where it saves nothing."""
        saved = self.training - self.training_taken
        return self.scoring / saved if saved > 0 else None

    def saved_share(self, epochs: int) -> float:
        """The share of the training on all rows that is saved in so many epochs, scoring included, if both models are
        equally large. Below 0 the selection costs more than it saves."""
        return 1 - self.training_taken / self.training - self.scoring / (epochs * self.training)

    def document(self, weights: int | None) -> dict[str, object]:
        """As JSON; `weights` are those of the model that scores, None where they are unknown."""
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


def selection_cost(
    prompt_tokens: Floats, answer_tokens: Floats, taken: RowIndices, is_pair: NDArray[np.bool_], answer_passes: int
) -> SelectionCost | None:
    """Of the columns [rows], NaN for rows without a score; None where no row has one. Scoring passes over prompt and
    answer once, over the answer alone `answer_passes` times, and over prompt and answer again for the shuffled pairs.
    """
    both = prompt_tokens + answer_tokens
    tokens, tokens_taken = float(np.nansum(both)), float(np.nansum(both[taken]))
    if not tokens:
        return None
    scored = tokens + answer_passes * float(np.nansum(answer_tokens)) + float(np.nansum(both[is_pair]))
    return SelectionCost(tokens, tokens_taken, FORWARD * scored, TRAINING * tokens, TRAINING * tokens_taken)


def estimated_prompt_tokens(prompt_characters: Floats, answer_characters: Floats, answer_tokens: Floats) -> Floats:
    """Characters times the median of tokens over characters of the answers: select has no tokenizer, and of truncated
    answers fewer tokens were scored."""
    is_known = ~np.isnan(answer_tokens) & (answer_characters > 0)
    if not is_known.any():
        return np.full(len(prompt_characters), np.nan)
    found: Floats = prompt_characters * np.median(answer_tokens[is_known] / answer_characters[is_known])
    return found
