"""The layers of a network as its architecture has them. Adapters wrap a layer in a module of another class, without the
attributes of the layer: whatever asks for a layer's class or sizes asks for the layer here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedModel

WRAPPED = ("base_layer", "original_module")  # where peft's wrappers keep the layer


def plain_layer(module: torch.nn.Module) -> torch.nn.Module:
    """The layer in the wrappers of peft, or the module itself."""
    for name in WRAPPED:
        if isinstance(inner := getattr(module, name, None), torch.nn.Module):
            return plain_layer(inner)
    return module


def input_embeddings(network: PreTrainedModel) -> torch.nn.Embedding:
    return cast("torch.nn.Embedding", plain_layer(network.get_input_embeddings()))


def output_layer(network: PreTrainedModel) -> torch.nn.Module | None:
    """None for a network without one."""
    head: torch.nn.Module | None = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return None if head is None else plain_layer(head)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout inside the block; afterwards in the mode that `model` was in. Quantized layers stay in training
    mode: in evaluation mode bitsandbytes reorders 4-bit weights on a CPU for good, and has no gradient for them."""
    was_training = model.training
    model.train(False)
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        layer.training = isinstance(weight, torch.Tensor) and not weight.is_floating_point()
    try:
        yield
    finally:
        model.train(was_training)
