"""Loss and gradient of every pad mode against each sample alone (the gradient shows what the loss hides), and the
memory that they take."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from codetune.model.adapters import add_adapters, base_network
from codetune.model.attention import SEGMENTED
from codetune.project.sections import LoraSettings, TrainingObjective
from codetune.training.loss import OBJECTIVES, AnswerLoss, LossFunction, loss_function, plain_losses
from tests.model.builders import ARCHITECTURES, tiny_model
from tests.training.samples import SAMPLES, by_hand, collated, gradient, weighted_by_hand

VOCABULARY = 90
FLAT = ("paper_pack", "dynamic_pack")
MODES = ["max_length", "dynamic_pad", *FLAT]


def model_for(mode: str, architecture: str = "llama", vocabulary: int = VOCABULARY) -> PreTrainedModel:
    model = tiny_model(architecture, vocabulary).train()
    model.set_attn_implementation(SEGMENTED if mode in FLAT else "sdpa")
    return model


def loss_of(
    losses: LossFunction, model: Any, steps: list[dict[str, Any]], objective: TrainingObjective = "nll"
) -> torch.Tensor:
    """The loss of a step over all processes' micro-batches, each divided by the tokens of all."""
    count = sum(len(step["shift_labels"]) for step in steps)
    batches = [batch for step in steps for batch in step["micro_batches"]]
    return torch.stack([OBJECTIVES[objective](losses(model, batch)).sum() / count for batch in batches]).sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_micro_batch", [1, 2, 5])
@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_loss_and_gradient_are_those_of_each_sample_alone(
    architecture: str, mode: str, per_micro_batch: int, chunked: bool
) -> None:
    alone = tiny_model(architecture, VOCABULARY).train()
    loss = by_hand(alone)
    expected = gradient(alone, loss)
    model = model_for(mode, architecture)
    # Chunks of three tokens, so that most micro-batches have some and a rest.
    losses = AnswerLoss(model, 3 * VOCABULARY) if chunked else plain_losses
    found = loss_of(losses, model, collated(mode, per_micro_batch))
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert (gradient(model, found) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_each_token_is_weighted_by_its_probability_in_every_pad_mode(mode: str, chunked: bool) -> None:
    alone = tiny_model("llama", VOCABULARY).train()
    loss = weighted_by_hand(alone)
    expected = gradient(alone, loss)
    model = model_for(mode)
    losses = AnswerLoss(model, 3 * VOCABULARY) if chunked else plain_losses
    for processes in (1, 4):
        found = loss_of(losses, model, collated(mode, 2, processes=processes), "dft")
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        assert (gradient(model, found) - expected).norm() < 1e-5 * expected.norm()


def test_dynamic_fine_tuning_is_the_published_loss() -> None:
    """Of tokens with the probabilities 1/2 and 1/8: losses -p log p, gradients to the logits of p times those of the
    cross-entropy, p - 1 for the token itself."""
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(7)]], requires_grad=True)
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    found = OBJECTIVES["dft"](losses)
    assert found.tolist() == pytest.approx([math.log(2) / 2, math.log(8) / 8])
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 4, 1 / 4, -7 / 64, 7 / 64])


@pytest.mark.parametrize("mode", MODES)
def test_processes_together_learn_what_one_does_even_when_some_are_idle(mode: str) -> None:
    model = model_for(mode)
    losses = loss_function(model)
    expected = gradient(model, loss_of(losses, model, collated(mode)))
    together = collated(mode, 1, processes=4)
    assert (gradient(model, loss_of(losses, model, together)) - expected).norm() < 1e-5 * expected.norm()
    # The idle one has a gradient for every weight, of zeros: others wait for it.
    idle = [batch for step in together for batch in step["micro_batches"] if not batch["rows"]]
    assert len(idle) == 3
    nothing = gradient(model, losses(model, idle[0]).sum())
    assert len(nothing) == len(expected)
    assert not nothing.any()


@pytest.mark.parametrize("mode", FLAT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_isolation_samples_learn_from_those_before_them_in_the_stretch(mode: str, architecture: str) -> None:
    model = model_for(mode, architecture)
    losses = loss_function(model)
    (step,) = collated(mode, 5, isolated=False)
    (batch,) = step["micro_batches"]
    # By hand: the stretch is one sample to a model that sees all of it.
    rows = batch["inputs"]["input_ids"][0].split(batch["inputs"]["segments"])
    plain = tiny_model(architecture, VOCABULARY)
    with torch.no_grad():
        logits = torch.cat([plain(row[None]).logits[0] for row in rows]).log_softmax(-1)
        expected = -logits[batch["positions"], batch["targets"]]
        torch.testing.assert_close(losses(model, batch), expected, rtol=1e-4, atol=1e-5)
        apart = loss_of(losses, model, collated(mode, 5))
    assert apart.item() != pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("isolated", [True, False])
def test_a_changed_sample_moves_nobody_elses_loss_unless_it_is_asked_for(mode: str, isolated: bool) -> None:
    model = model_for(mode)
    losses = loss_function(model)
    (batch,) = collated(mode, 5, isolated=isolated)[0]["micro_batches"]
    before = losses(model, batch)
    # Stretches of 40 tokens at most: a b | c d | e in the drawn order, d b e a | c in the paper's.
    changed, behind = (SAMPLES[0], {"b"}) if mode == "dynamic_pack" else (SAMPLES[1], {"e", "a"})
    ids = batch["inputs"]["input_ids"].flatten()  # a view
    size = len(changed)
    (place,) = [at for at in range(len(ids) - size + 1) if (ids[at : at + size].numpy() == changed.tokens).all()]
    ids[place] += 1
    moved = (losses(model, batch) != before).tolist()
    spans = zip(batch["rows"], itertools.pairwise([0, *batch["row_ends"]]), strict=True)
    rows = {row for row, (start, end) in spans if any(moved[start:end])}
    assert rows == {changed.id} | (behind if mode in FLAT and not isolated else set())


class MostLogits(TorchDispatchMode):
    """For how many tokens one tensor holds logits at most, forward or backward; the weights themselves do not count."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens, self._vocabulary, self._width = 0, vocabulary, width

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self._vocabulary,):
                tokens = tensor.numel() // self._vocabulary
                self.tokens = max(self.tokens, tokens if tokens != self._width else 0)
        return made


@pytest.mark.parametrize("mode", MODES)
def test_logits_are_made_for_learned_tokens_alone_and_a_few_at_a_time(mode: str) -> None:
    vocabulary = 5000
    model = model_for(mode, vocabulary=vocabulary)
    (step,) = collated(mode, 5)
    (batch,) = step["micro_batches"]
    seen, learned = batch["inputs"]["input_ids"].numel(), len(batch["targets"])

    def most(losses: LossFunction) -> int:
        with MostLogits(vocabulary, 64) as watched:
            losses(model, batch).sum().backward()
        return watched.tokens

    assert most(plain_losses) == seen
    assert learned > 14
    assert most(AnswerLoss(model, 7 * vocabulary)) == 7


def test_in_bfloat16_the_loss_is_taken_in_float32() -> None:
    model = model_for("dynamic_pad")
    (step,) = collated("dynamic_pad", 5)
    (batch,) = step["micro_batches"]
    with torch.autocast("cpu", torch.bfloat16):
        plain, chunked = plain_losses(model, batch), AnswerLoss(model, 3 * VOCABULARY)(model, batch)
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_adapters_learn_the_same_also_on_the_output_layer_with_dropout(targets: Any) -> None:
    gradients = []
    for chunked in (False, True):
        settings = LoraSettings(dropout=0.5 if targets == ["q_proj"] else 0.0, target_modules=targets)
        model = add_adapters(model_for("dynamic_pack"), "lora", settings, 1)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, generator=torch.Generator().manual_seed(1))
        losses = AnswerLoss(base_network(model), 3 * VOCABULARY) if chunked else plain_losses
        gradients.append(gradient(model, loss_of(losses, model, collated("dynamic_pack"))))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_dropout_on_the_output_layer_is_drawn_once_for_both_ways() -> None:
    model = add_adapters(model_for("dynamic_pack"), "lora", LoraSettings(dropout=0.5, target_modules=["lm_head"]), 1)
    (adapter,) = [weights for name, weights in model.named_parameters() if "lora_B" in name]
    losses = AnswerLoss(base_network(model), 3 * VOCABULARY)
    (batch,) = collated("dynamic_pack", 5)[0]["micro_batches"]

    direction = torch.randn(adapter.shape, generator=torch.Generator().manual_seed(1))

    def loss(shift: float) -> torch.Tensor:
        torch.manual_seed(4)
        with torch.no_grad():
            adapter.copy_(shift * direction)
        return losses(model, batch).double().sum()

    loss(0.1).backward()
    assert adapter.grad is not None
    slope = (adapter.grad * direction).double().sum().item()
    with torch.no_grad():
        expected = (loss(0.1 + 1e-2) - loss(0.1 - 1e-2)) / 2e-2
    assert slope == pytest.approx(expected.item(), rel=1e-2)


def test_an_architecture_that_caps_its_logits_is_taken_as_it_is() -> None:
    assert loss_function(tiny_model("gemma2", VOCABULARY)) is plain_losses
