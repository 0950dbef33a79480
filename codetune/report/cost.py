"""What a selection would cost against what it would save, in FLOPs (docs/method.md, section 4): before anything is
scored, with models of any size. The cost of a selection that was made is in `selection/cost.py`.

A row has Q tokens of prompt and A of answer. Scoring it with a model of S weights costs 2 S (Q + 2 A): the answer after
its prompt, and alone; 2 S A more where it is scored after the empty prompt as well. Training a model of N weights on it
costs 6 N (Q + A) an epoch; 4 N (Q + A) where the weights are frozen and adapters are trained. Embedding is not counted:
the usual encoder has a fiftieth of the weights. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codetune.selection.cost import FORWARD, TRAINING

SMALLER_SCORERS = (1.0, 1 / 5, 1 / 20)  # of the weights of the scorer that the project has
FEWER_EPOCHS = (1, 2)


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Sums over the rows of a data set."""

    prompt: float
    answer: float

    @property
    def all(self) -> float:
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class SavingEstimate:
    """FLOPs of scoring all rows, and of training on all and on the selected ones."""

    score: float
    train_all: float
    train_selected: float
    epochs: float

    @property
    def saved(self) -> float:
        """Below 0 where the selection costs more than it saves."""
        return self.train_all - self.train_selected - self.score

    @property
    def saved_share(self) -> float:
        return self.saved / self.train_all

    @property
    def break_even_epochs(self) -> float | None:
        """The length of the training from which on the selection saves work; None where it never does."""
        saved_an_epoch = (self.train_all - self.train_selected) / self.epochs
        return self.score / saved_an_epoch if saved_an_epoch > 0 else None


@dataclass(frozen=True, slots=True)
class CostVariant:
    """The share of the whole training that would be saved with another scorer, or another length of the training."""

    scorer_share: float  # of the weights of the project's scorer
    epochs: float
    saved_share: float


def scoring_flops(weights: int, tokens: RowTokens, *, empty_prompt: bool) -> float:
    return FORWARD * float(weights) * (tokens.prompt + (3 if empty_prompt else 2) * tokens.answer)


def training_flops(weights: int, tokens: float, *, is_full: bool) -> float:
    """Of one pass over so many tokens."""
    return (TRAINING if is_full else TRAINING - FORWARD) * float(weights) * tokens


def estimate_saving(score: float, epoch: float, selected_share: float, epochs: float) -> SavingEstimate:
    """`epoch` are the FLOPs of an epoch on all rows, of whose tokens the selection has a share.

    >>> full, answers = training_flops(1, 100, is_full=True), RowTokens(40, 60)
    >>> cost = estimate_saving(scoring_flops(1, answers, empty_prompt=False), full, 0.4, 3)
    >>> round(cost.saved_share, 2), round(cost.break_even_epochs, 2)
    (0.42, 0.89)
    """
    return SavingEstimate(score, epoch * epochs, epoch * epochs * selected_share, epochs)


def variants(cost: SavingEstimate) -> Sequence[CostVariant]:
    """What a smaller scorer and fewer epochs change."""
    epoch, share = cost.train_all / cost.epochs, cost.train_selected / cost.train_all
    lengths = sorted({*(float(length) for length in FEWER_EPOCHS if length < cost.epochs), cost.epochs})
    return [
        CostVariant(size, length, estimate_saving(size * cost.score, epoch, share, length).saved_share)
        for size in SMALLER_SCORERS
        for length in lengths
    ]
