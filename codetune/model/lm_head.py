"""The output layer of a causal model by itself: hidden states of the places that matter -> their logits, as the whole
model would give them. Most architectures end with that layer; some cap (Gemma 2) or scale (Cohere, Granite) what it
gives. Shapes: P places, H width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from codetune.errors import ModelError
from codetune.model.attention import KERNELS, SEGMENTED, packed_inputs
from codetune.model.packing_check import ShardedNetwork

FLAT = (SEGMENTED, *KERNELS.values())  # attentions that want to be told where samples begin
Logits = Callable[[torch.Tensor], torch.Tensor]  # [P, H] -> [P, V]


def hidden_to_logits(network: PreTrainedModel) -> Logits:
    """Raises ModelError where the model's own logits come about in another way."""
    logits: Logits = lm_head(network) if has_plain_lm_head(network) else _after_the_head(network)
    _require_own_logits(network, logits)
    return logits


def lm_head(network: PreTrainedModel) -> Any:
    return network.get_output_embeddings()  # type: ignore[no-untyped-call]


def has_plain_lm_head(network: PreTrainedModel, shared: ShardedNetwork | None = None) -> bool:
    """Whether logits leave the model as its output layer gives them: found with marks so large that any change shows,
    as it hardly would in numbers of a usual size."""
    run, device = (shared.module, shared.device) if shared else (network, network.device)
    head, marked = lm_head(network), torch.tensor(0.0)
    logits = head.forward

    def mark(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal marked
        marked = torch.full_like(logits(hidden), 1000.0)
        return marked

    head.forward = mark
    was_training = network.training
    run.train()  # in evaluation mode bitsandbytes would rearrange 4-bit weights for good, and lose their gradients
    try:
        with torch.no_grad():
            given = run(**_few_tokens(network, device), use_cache=False).logits
    finally:
        head.forward = logits
        run.train(was_training)
    return torch.equal(given.float(), marked.float())


def _after_the_head(network: PreTrainedModel) -> Logits:
    """The network itself, with the hidden states put in the place of those that its body would make."""
    body, few = network.base_model, _few_tokens(network, network.device)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        forward = body.forward
        body.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden[None])
        try:
            return network(**few, use_cache=False).logits[0]  # type: ignore[no-any-return]
        finally:
            body.forward = forward

    return logits


@torch.inference_mode()
def _require_own_logits(network: PreTrainedModel, logits: Logits) -> None:
    few = _few_tokens(network, network.device)
    whole = network(**few, use_cache=False).logits[0]
    own = logits(network.base_model(**few, use_cache=False).last_hidden_state[0])
    if own.shape != whole.shape or not torch.allclose(whole.float(), own.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"The architecture {network.config.model_type} does not make its logits from its last hidden states alone. "
            "Expected: a model that does. Set score.model to one of another architecture."
        )


def _few_tokens(network: PreTrainedModel, device: torch.device | str) -> dict[str, Any]:
    tokens = torch.arange(8, device=device)
    if network.config._attn_implementation in FLAT:
        return packed_inputs([tokens])
    return {"input_ids": tokens[None]}
