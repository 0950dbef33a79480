"""Sums of training metrics, the lines of `train/metrics.jsonl` that they become, and the FLOPs behind the MFU.

A line holds the means over the steps since the line before it. Every checkpoint stores the sums, and `truncate_metrics`
drops the lines after it, so a resumed training writes each line once. Throughput counts real tokens, not padding.

MFU, the model FLOPs utilization, is as in PaLM (Chowdhery et al. 2022, appendix B): FLOPs that the model itself needs,
divided by what the GPU can do in the time. A matrix product costs two FLOPs a weight and token; causal attention counts
half of its token pairs. The backward pass costs twice the forward, or once where weights are frozen. Recomputed
activations and padding do not count; the output layer counts for learned tokens only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from codetune.model.plain_layers import output_layer
from codetune.project.sections import Method, Precision
from codetune.store.files import write_text
from codetune.training.holdout import HoldoutHistory

MetricsLine = dict[str, float | int | None]

# Dense bfloat16 and float16 FLOPs a second, from NVIDIA's data sheets. The first name found in the card's name counts.
PEAK_FLOPS = {
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
# The least share of a model's weights in linear layers and embeddings with which `FlopCounter` counts it.
MIN_COUNTED_SHARE = 0.9
OLD_NAMES = {"operations": "flops", "possible_operations": "peak_flops"}  # in checkpoints of earlier versions


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step; of one rank, or of all after the sum over them."""

    loss: float = 0.0
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    tokens_seen: int = 0  # padding included
    samples: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    peak_flops: float = 0.0  # what the GPU could have done in that time; 0 where either is unknown


@dataclass(frozen=True, slots=True)
class MetricSums(StepMetrics):
    """Each metric summed over `steps`."""

    steps: int = 0

    def plus(self, step: StepMetrics) -> Self:
        sums = {name: getattr(self, name) + value for name, value in asdict(step).items()}
        return replace(self, steps=self.steps + 1, **sums)

    @property
    def padding_rate(self) -> float:
        return 1 - self.tokens / self.tokens_seen if self.tokens_seen else 0.0

    @property
    def mfu(self) -> float | None:
        return self.flops / self.peak_flops if self.peak_flops else None


@dataclass(frozen=True, slots=True)
class MetricAccumulator:
    """Sums since the last line and since the first step."""

    since_line: MetricSums = MetricSums()
    since_start: MetricSums = MetricSums()
    peak_memory_bytes: int | None = None
    last_loss: float | None = None
    holdout: HoldoutHistory | None = None  # where there are held-out rows

    def plus(self, step: StepMetrics, peak_memory_bytes: int | None) -> Self:
        peaks = [peak for peak in (self.peak_memory_bytes, peak_memory_bytes) if peak is not None]
        return replace(
            self,
            since_line=self.since_line.plus(step),
            since_start=self.since_start.plus(step),
            peak_memory_bytes=max(peaks, default=None),
            last_loss=step.loss,
        )

    def line(self, step: int, epoch: float) -> MetricsLine:
        sums = self.since_line
        return {
            "step": step,
            "epoch": epoch,
            "loss": sums.loss / sums.steps,
            "learning_rate": sums.learning_rate / sums.steps,
            "grad_norm": sums.grad_norm / sums.steps,
            "tokens_per_second": sums.tokens / sums.seconds,
            "samples_per_second": sums.samples / sums.seconds,
            "padding_rate": sums.padding_rate,
            "peak_memory_bytes": self.peak_memory_bytes,
            "mfu": sums.mfu,
            "seconds": sums.seconds,
        }

    def after_line(self) -> Self:
        return replace(self, since_line=MetricSums())

    def state(self) -> dict[str, object]:
        state = asdict(self)
        return state if self.holdout else {name: value for name, value in state.items() if name != "holdout"}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Self:
        since_line, since_start = (
            MetricSums(**{OLD_NAMES.get(name, name): value for name, value in state[sums].items()})
            for sums in ("since_line", "since_start")
        )
        holdout = HoldoutHistory(**state["holdout"]) if "holdout" in state else None
        return cls(since_line, since_start, state["peak_memory_bytes"], state["last_loss"], holdout)


def append_metrics(path: Path, line: MetricsLine) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def truncate_metrics(path: Path, last_step: int) -> None:
    """Drops the lines after `last_step`, and an incomplete one that a crash left."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > last_step:
            break
        kept.append(line)
    write_text(path, "".join(kept))


@dataclass(frozen=True, slots=True)
class FlopCounter:
    body: int  # weights of the linear layers that every token passes
    head: int  # weights of the output layer
    attention: int  # layers x heads x head dimension
    passes: int  # of the linear layers: forward, gradient of the input, gradient of the weights

    @classmethod
    def of(cls, network: PreTrainedModel, method: Method) -> Self | None:
        """None for architectures with other kinds of layers (mixtures of experts, recurrent states)."""
        config = network.config.get_text_config()
        head = output_layer(network)
        modules = list(network.modules())
        layers = [module for module in modules if isinstance(module, torch.nn.Linear)]
        linear = {layer: layer.in_features * layer.out_features for layer in layers}
        embeddings = sum(_numel(module.weight) for module in modules if isinstance(module, torch.nn.Embedding))
        is_counted = sum(linear.values()) + embeddings >= MIN_COUNTED_SHARE * sum(map(_numel, network.parameters()))
        heads = getattr(config, "num_attention_heads", None)
        if not is_counted or not isinstance(heads, int):
            return None
        head_weights = linear.pop(head, 0) if isinstance(head, torch.nn.Linear) else 0
        head_dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
        attention = config.num_hidden_layers * heads * head_dimension
        return cls(sum(linear.values()), head_weights, attention, 3 if method == "full" else 2)

    def flops(self, tokens: int, token_pairs: int, learned: int) -> float:
        """FLOPs of samples with `tokens` tokens, `learned` of them learned; `token_pairs` sums their squared lengths.

        >>> FlopCounter(body=10, head=4, attention=2, passes=3).flops(tokens=5, token_pairs=25, learned=2)
        648.0
        """
        # Attention: scores and weighted values are 2 products of 2 FLOPs, for half of the pairs.
        return 2.0 * self.passes * (self.body * tokens + self.head * learned) + 3 * 2.0 * self.attention * token_pairs


def peak_flops_per_second(precision: Precision, device_name: str) -> float | None:
    """Of one GPU; None where it is unknown.

    >>> peak_flops_per_second("bfloat16", "NVIDIA H100 80GB HBM3")
    989000000000000.0
    >>> peak_flops_per_second("float32", "NVIDIA H100 80GB HBM3")
    """
    if precision == "float32":
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name)), None)


def _numel(weights: torch.Tensor) -> int:
    """Size of the whole parameter, also under ZeRO-3, where each process holds a part."""
    return int(getattr(weights, "ds_numel", weights.numel()))
