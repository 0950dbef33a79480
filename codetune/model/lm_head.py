"""The language-model head (output layer) of a network by itself: hidden states of some positions -> their logits, equal
to those of the whole network. Most architectures end with that layer; some cap (Gemma 2) or scale (Cohere, Granite) its
output. Axes: P positions, H width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from codetune.errors import ModelError
from codetune.model.attention import KERNELS, SEGMENTED, ModelInputs, packed_inputs
from codetune.model.packing_check import ShardedNetwork

NEEDS_SEGMENTS = (SEGMENTED, *KERNELS.values())  # attentions that need the inputs of packed rows
HiddenToLogits = Callable[[torch.Tensor], torch.Tensor]  # [P, H] -> [P, V]


def lm_head(network: PreTrainedModel) -> torch.nn.Module:
    """The output layer, in an adapter's wrapper if it has one."""
    head: torch.nn.Module = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


def hidden_to_logits(network: PreTrainedModel) -> HiddenToLogits:
    """The function from last hidden states to logits: the head, or what the network does after its body. Raises
    ModelError if the network computes its logits from anything else as well."""
    logits = lm_head(network) if has_plain_lm_head(network) else _after_the_body(network)
    _require_own_logits(network, logits)
    return logits


def has_plain_lm_head(network: PreTrainedModel, sharded: ShardedNetwork | None = None) -> bool:
    """Whether the logits of the network are the output of its head, unchanged. Tested by a head that returns 1000
    everywhere: capping or scaling hardly changes logits of usual size."""
    run, device = (sharded.module, sharded.device) if sharded else (network, network.device)
    head, marked = lm_head(network), torch.tensor(0.0)
    forward = head.forward

    def mark(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal marked
        marked = torch.full_like(forward(hidden), 1000.0)
        return marked

    head.forward = mark
    was_training = network.training
    run.train()  # in evaluation mode bitsandbytes reorders 4-bit weights for good, without gradients
    try:
        with torch.no_grad():
            logits = run(**_few_tokens(network, device), use_cache=False).logits
    finally:
        head.forward = forward
        run.train(was_training)
    return torch.equal(logits.float(), marked.float())


def _after_the_body(network: PreTrainedModel) -> HiddenToLogits:
    """Runs the whole network with its body replaced by one that returns the given hidden states."""
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
def _require_own_logits(network: PreTrainedModel, logits: HiddenToLogits) -> None:
    few = _few_tokens(network, network.device)
    expected = network(**few, use_cache=False).logits[0]
    found = logits(network.base_model(**few, use_cache=False).last_hidden_state[0])
    if found.shape != expected.shape or not torch.allclose(
        expected.float(), found.float(), rtol=1e-2, atol=1e-2, equal_nan=True
    ):
        raise ModelError(
            f"The architecture {network.config.model_type} does not make its logits from its last hidden states alone. "
            "Expected: a model that does. Set score.model to one of another architecture."
        )


def _few_tokens(network: PreTrainedModel, device: torch.device | str) -> ModelInputs:
    tokens = torch.arange(8, device=device)
    if network.config._attn_implementation in NEEDS_SEGMENTS:
        return packed_inputs([tokens])
    return {"input_ids": tokens[None]}
