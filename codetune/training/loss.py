"""Micro-batch -> the cross-entropy of each learned token, in float32 and nats, and the objectives of it that a training
can have.

Logits fill a GPU's memory: a float32 for each token and each word of the vocabulary, in several copies. `AnswerLoss`
computes them for the learned tokens only, a chunk at a time, and recomputes them in the backward pass instead of
keeping them. It replaces the forward of the output layer, so whatever wraps the model (autocast, DDP, FSDP, ZeRO) finds
every weight used where it expects it. `plain_losses` computes the same from the logits that the model returns.

Axes: B rows, T tokens of a row, H width, N learned tokens of the micro-batch, C of them in a chunk, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from codetune.model.lm_head import has_plain_lm_head, lm_head
from codetune.model.packing_check import ShardedNetwork
from codetune.project.sections import TrainingObjective
from codetune.training.collate import MicroBatchTensors

CHUNK_LOGITS = 1 << 25  # float32 logits of a chunk: 128 MiB, and as much for their gradient
LossFunction = Callable[[torch.nn.Module, MicroBatchTensors], torch.Tensor]  # model and micro-batch -> [N]


def negative_log_likelihood(losses: torch.Tensor) -> torch.Tensor:
    return losses


def dynamic_fine_tuning(losses: torch.Tensor) -> torch.Tensor:
    """The loss of each token times its probability p, a constant for the gradient (Wu et al. 2025, arXiv 2508.05629,
    sec. 3). So a token has the gradient -grad p, where that of its cross-entropy is -grad p / p. Shape [N]."""
    return losses * torch.exp(-losses.detach())


# The cross-entropies of learned tokens -> what a step takes the mean of; both [N].
OBJECTIVES: Mapping[TrainingObjective, Callable[[torch.Tensor], torch.Tensor]] = {
    "nll": negative_log_likelihood,
    "dft": dynamic_fine_tuning,
}


def loss_function(network: PreTrainedModel, sharded: ShardedNetwork | None = None) -> LossFunction:
    """`AnswerLoss` where the model returns the logits of its output layer unchanged, else `plain_losses`."""
    return AnswerLoss(network, CHUNK_LOGITS) if has_plain_lm_head(network, sharded) else plain_losses


def plain_losses(model: torch.nn.Module, batch: MicroBatchTensors) -> torch.Tensor:
    logits = model(**batch["inputs"], use_cache=False).logits  # [B, T, V]
    return _losses(logits.flatten(0, 1)[batch["positions"]], batch["targets"])


class AnswerLoss:
    """Replaces the forward of the output layer: it returns losses during a call of this object, else logits."""

    def __init__(self, network: PreTrainedModel, chunk_logits: int) -> None:
        self._head = lm_head(network)
        self._logits = self._head.forward
        self._chunk = max(1, chunk_logits // network.config.get_text_config().vocab_size)
        # The head draws random numbers only in adapters with dropout. Saving the random state makes a GPU wait.
        self._draws = any(isinstance(module, torch.nn.Dropout) for module in self._head.modules())
        self._learned: tuple[torch.Tensor, torch.Tensor] | None = None
        self._head.forward = self._forward

    def __call__(self, model: torch.nn.Module, batch: MicroBatchTensors) -> torch.Tensor:
        """`model` is the network, or the module that wraps it."""
        self._learned = (batch["positions"], batch["targets"])
        try:
            losses: torch.Tensor = model(**batch["inputs"], use_cache=False).logits
        finally:
            self._learned = None
        return losses.flatten()  # [N]

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._learned is None:
            return torch.as_tensor(self._logits(hidden))
        positions, targets = self._learned
        states = hidden.flatten(0, -2).index_select(0, positions)  # [N, H]
        pairs = zip(torch.split(states, self._chunk), torch.split(targets, self._chunk), strict=True)
        losses = [
            checkpoint(self._losses_of_chunk, *pair, use_reentrant=False, preserve_rng_state=self._draws)
            for pair in pairs
        ]
        # [1, N, 1] in place of [B, T, V]. Not a view: FSDP2 registers hooks on outputs, and views lose them.
        return torch.cat(losses)[None, :, None].clone()

    def _losses_of_chunk(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _losses(self._logits(states), targets)  # from [C, V]


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="none")
