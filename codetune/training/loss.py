"""A micro-batch through the model -> the cross-entropy of its learned tokens, in float32 and nats.

Logits are what fills a GPU's memory: one float32 for each token and each word of the vocabulary, several times over.
`AnswerLoss` makes them for the tokens that are learned only, some at a time, and makes them once more on the way back
instead of keeping them. It does so inside the output layer, so that whatever wraps the model (autocast, DDP, FSDP,
ZeRO) finds every weight used where it expects it. `plain_losses` is the same from the model's own logits.

Axes: B rows, T tokens of a row, H width, N learned tokens of the micro-batch, C of them at once, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from codetune.model.lm_head import has_plain_lm_head, lm_head
from codetune.model.packing_check import ShardedNetwork

CHUNK_LOGITS = 1 << 25  # float32 logits at once: 128 MiB, and as much for their gradient
Losses = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]  # model and micro-batch -> [N]


def losses_of(network: PreTrainedModel, shared: ShardedNetwork | None = None) -> Losses:
    """The frugal way where the architecture allows it: where its logits are what its output layer gives."""
    return AnswerLoss(network, CHUNK_LOGITS) if has_plain_lm_head(network, shared) else plain_losses


def plain_losses(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    logits = model(**batch["inputs"], use_cache=False).logits  # [B, T, V]
    return _losses(logits.flatten(0, 1)[batch["positions"]], batch["targets"])


class AnswerLoss:
    """Takes over the output layer of `network`: while a micro-batch is learned it gives losses, else logits."""

    def __init__(self, network: PreTrainedModel, chunk_logits: int) -> None:
        self._head = lm_head(network)
        self._logits = self._head.forward
        self._chunk = max(1, chunk_logits // network.config.get_text_config().vocab_size)
        # Only adapters on the head itself draw random numbers there; looking after them makes a GPU wait.
        self._draws = any(isinstance(module, torch.nn.Dropout) for module in self._head.modules())
        self._learned: tuple[torch.Tensor, torch.Tensor] | None = None
        self._head.forward = self._forward

    def __call__(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """`model` is the network, or what has been wrapped around it since."""
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
        # [1, N, 1], in the place of [B, T, V]; no view: FSDP2 hangs its hooks on what a module gives, which views lose.
        return torch.cat(losses)[None, :, None].clone()

    def _losses_of_chunk(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _losses(self._logits(states), targets)  # from [C, V]


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="none")
