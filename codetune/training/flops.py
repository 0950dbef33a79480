"""What a step of training is in floating-point operations, and how many the card could have done: its share of peak.

Counted as is usual, from the model alone: two operations a weight of a matrix product and token, and those of causal
attention, forward once and backward twice (once for weights that are frozen). What is recomputed to save memory does
not count, nor does padding. The output layer counts for the tokens that are learned: no others meet it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import torch
from transformers import PreTrainedModel

from codetune.project.sections import Method
from codetune.training.arguments import Precision

# Dense bfloat16 and float16 operations a second, from NVIDIA's data sheets. The first name that fits counts.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
}
MOST = 0.9  # of a model's weights must lie in linear layers and embeddings, else they are not what is counted here


@dataclass(frozen=True, slots=True)
class Arithmetic:
    body: int  # weights of linear layers that every token meets
    head: int
    attention: int  # layers x heads x head dimension
    passes: int  # of the linear layers: forward, gradient of the input, gradient of the weights

    @classmethod
    def of(cls, network: PreTrainedModel, method: Method) -> Self | None:
        """None for architectures whose arithmetic is elsewhere (mixtures of experts, recurrent states)."""
        config = network.config.get_text_config()
        head = network.get_output_embeddings()  # type: ignore[no-untyped-call]
        linear = {module: module.in_features * module.out_features for module in _linear_layers(network)}
        tables = sum(_size(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding))
        if sum(linear.values()) + tables < MOST * sum(_size(weights) for weights in network.parameters()):
            return None
        of_head, heads = linear.pop(head, 0), getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):
            return None
        of_a_head = getattr(config, "head_dim", None) or config.hidden_size // heads
        attention = config.num_hidden_layers * heads * of_a_head
        return cls(sum(linear.values()), of_head, attention, 3 if method == "full" else 2)

    def operations(self, tokens: int, token_pairs: int, learned: int) -> float:
        """Of samples with so many tokens, the sum of their lengths' squares, and tokens to learn.

        >>> Arithmetic(body=10, head=4, attention=2, passes=3).operations(tokens=5, token_pairs=25, learned=2)
        648.0
        """
        # Scores and weighted values: 2 products of 2 operations, for half of the pairs.
        return 2.0 * self.passes * (self.body * tokens + self.head * learned) + 3 * 2.0 * self.attention * token_pairs


def peak_operations(precision: Precision, device_name: str) -> float | None:
    """A second, of one device; None where it is not known.

    >>> peak_operations("bfloat16", "NVIDIA H100 80GB HBM3"), peak_operations("float32", "NVIDIA H100 80GB HBM3")
    (989000000000000.0, None)
    """
    if precision == "float32":
        return None
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def _size(weights: torch.Tensor) -> int:
    """Of which a process may have a part: ZeRO-3 knows the whole as `ds_numel`."""
    return int(getattr(weights, "ds_numel", weights.numel()))


def _linear_layers(network: PreTrainedModel) -> list[torch.nn.Linear]:
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
