"""Samples that are hard to batch, and what each of them costs a model when it is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from codetune.data.packing import MicroBatchPlan, split_into_micro_batches
from codetune.data.token_cache import Sample
from codetune.training.collate import Collator


def sample(name: str, length: int, learned: list[int]) -> Sample:
    tokens = np.random.default_rng(length).integers(3, 90, length)
    mask = np.zeros(length, dtype=bool)
    mask[learned] = True
    return Sample(name, tokens, mask)


# Also: one that starts with a learned token (which nothing predicts), two answers, one token only to learn.
SAMPLES = [
    sample("a", 17, list(range(9, 17))),
    sample("b", 5, [0, 3, 4]),
    sample("c", 30, [4, 5, 6, 20, 21]),
    sample("d", 2, [1]),
    sample("e", 9, list(range(9))),
]


def collated(mode: str, per_micro_batch: int = 2, *, isolated: bool = True, processes: int = 1) -> list[dict[str, Any]]:
    """The step of `SAMPLES` as each process has it."""
    plan = MicroBatchPlan(mode, per_micro_batch, processes, False, 64)
    dealt = split_into_micro_batches([len(one) for one in SAMPLES], plan)
    collator = Collator(mode, 40, isolated, 2)
    return [collator([[SAMPLES[at] for at in batch] for batch in batches]) for batches in dealt]


def by_hand(model: PreTrainedModel) -> torch.Tensor:
    """The mean over all learned tokens, one sample at a time, from the model's own full logits."""
    losses = []
    for one in SAMPLES:
        logits = model(torch.from_numpy(one.tokens)[None]).logits[0].log_softmax(-1)
        places = [place for place in range(1, len(one)) if one.learned[place]]
        losses += [-logits[place - 1, one.tokens[place]] for place in places]
    return torch.stack(losses).mean()


def weighted_by_hand(model: PreTrainedModel) -> torch.Tensor:
    """The same with each token weighted by its probability."""
    losses = []
    for one in SAMPLES:
        logits = model(torch.from_numpy(one.tokens)[None]).logits[0]
        places = [place for place in range(1, len(one)) if one.learned[place]]
        chances = [logits[place - 1].softmax(-1)[one.tokens[place]] for place in places]
        losses += [-chance.detach() * chance.log() for chance in chances]
    return torch.stack(losses).mean()


def gradient(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.grad is not None])
