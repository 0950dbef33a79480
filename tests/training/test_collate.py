"""Loss and gradient of every pad mode against each sample alone; the gradient shows what the loss hides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from codetune.model.attention import attention_for
from codetune.training.collate import Collator, token_losses
from codetune.training.corpus import Sample
from tests.model.builders import ARCHITECTURES, tiny_model

MODES = ["max_length", "dynamic_pad", "dynamic_pack"]


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


def by_hand(model: PreTrainedModel) -> torch.Tensor:
    """The mean over all learned tokens, one sample at a time, from the model's own full logits."""
    losses = []
    for one in SAMPLES:
        logits = model(torch.from_numpy(one.tokens)[None]).logits[0].log_softmax(-1)
        places = [place for place in range(1, len(one)) if one.learned[place]]
        losses += [-logits[place - 1, one.tokens[place]] for place in places]
    return torch.stack(losses).mean()


def collated(mode: str, per_micro_batch: int = 2) -> dict[str, Any]:
    return Collator(mode, per_micro_batch, 40, 2)(SAMPLES)


def gradient(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.grad is not None])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_micro_batch", [1, 2, 5])
def test_loss_and_gradient_are_those_of_each_sample_alone(architecture: str, mode: str, per_micro_batch: int) -> None:
    model = tiny_model(architecture, 90).train()
    loss = by_hand(model)
    expected = gradient(model, loss)
    model.set_attn_implementation(attention_for("auto", mode))
    step = collated(mode, per_micro_batch)
    count = int(step["shift_labels"].ne(-100).sum())
    parts = [token_losses(model, batch).sum() / count for batch in step["micro_batches"]]
    assert sum(parts).item() == pytest.approx(loss.item(), rel=1e-5)
    found = gradient(model, sum(parts))
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_micro_batch_by_hand() -> None:
    # tokens of a: 1 2 3 (learned: 3), of b: 4 5 (learned: 5)
    rows = [
        Sample("a", np.array([1, 2, 3]), np.array([False, False, True])),
        Sample("b", np.array([4, 5]), np.array([True, True])),
    ]
    (packed,) = Collator("dynamic_pack", 2, 4, 0)(rows)["micro_batches"]
    assert packed["inputs"]["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert packed["inputs"]["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert packed["inputs"]["segments"] == (3, 2)
    assert (packed["positions"].tolist(), packed["targets"].tolist()) == ([1, 3], [3, 5])
    (padded,) = Collator("max_length", 2, 4, 0)(rows)["micro_batches"]
    assert padded["inputs"]["input_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
    assert (padded["positions"].tolist(), padded["targets"].tolist()) == ([1, 4], [3, 5])
    assert (packed["rows"], packed["row_ends"]) == (["a", "b"], [1, 2])


@pytest.mark.parametrize(("mode", "seen"), [("max_length", 5 * 40), ("dynamic_pad", 34 + 60 + 9), ("dynamic_pack", 63)])
def test_tokens_are_counted_as_the_model_sees_them(mode: str, seen: int) -> None:
    step = collated(mode)
    assert (step["samples"], step["tokens"], step["tokens_seen"]) == (5, 63, seen)
    assert sum(batch["inputs"]["input_ids"].numel() for batch in step["micro_batches"]) == seen


def test_the_samples_are_left_as_they_are() -> None:
    before = [(one.tokens.copy(), one.learned.copy()) for one in SAMPLES]
    for mode in MODES:
        collated(mode)
    for one, (tokens, learned) in zip(SAMPLES, before, strict=True):
        assert (one.tokens == tokens).all()
        assert (one.learned == learned).all()
