"""Size of a model and of its largest micro-batch -> an estimate of the memory that a training takes on each GPU, by
parts, before anything is loaded.

P weights of which T are trained and F frozen, n processes, t tokens in the largest micro-batch (with padding), m of
them learned; L layers of width h, q and k wide in their queries and keys, f inside the MLP; V words; b bytes in a
number of the arithmetic (2, or 4 in float32), r in one of the hidden states between layers (4 where all weights are
trained, which are float32; else b). Bytes:

    weights      4 T + b F, and b T for the copies that autocast makes; in 4 or 8 bits 0.52 or 1.02 for each weight of
                 a linear layer (Dettmers et al. 2023, arXiv 2305.14314, sec. 3)
    gradients    4 T; under DDP twice, because its buckets are copies
    optimizer    8 T for the two moments of AdamW; in 8 bits 2 T and a scale for each block of 256, but embeddings
                 keep 8; Muon 4 T for its one momentum, and 8 outside the linear layers; Adafactor 4 (rows + columns)
                 of each matrix
    activations  t r h L for what checkpoints keep, and one layer; without checkpointing L layers. A layer has
                 t (2 (r + 4) h + 5 b h + 2 b (q + k) + 4 b f), as in Korthikanti et al. 2022 (arXiv 2205.05198,
                 sec. 4), counted for Llama as transformers computes it: norms in float32, no matrix of scores
    logits       c V (8 + 2 b) for a chunk of c = min(m, CHUNK_LOGITS / V) learned tokens and its gradient (loss.py)

ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) holds b T weights, and 4 T more in its optimizer. Its first stage
divides the optimizer by n, the second the gradients too, the third and FSDP2 the weights as well, of which one layer at
a time is whole. Counts neither the context of CUDA nor gaps between blocks: `fits` leaves a tenth of a GPU for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from codetune.model.load import outline_of
from codetune.model.plain_layers import output_layer
from codetune.project.sections import Precision, Training
from codetune.training.loss import CHUNK_LOGITS
from codetune.training.optimizers import fits_strategy
from codetune.training.parallelism import Offload, ParallelStrategy

USABLE_SHARE = 0.9  # of a GPU's memory
QUANTIZED_BYTES = {4: 0.52, 8: 1.02}  # of a weight, with its scales; 4 bits with double quantization
SAVED_NORM_BYTES = 4  # a norm keeps its result in float32
EIGHT_BIT_MOMENTS = 2 * (1 + 4 / 256)  # bytes of a weight: a scale for each block of 256
CASTS_OF_A_LAYER = 5  # inputs of the linear layers that share them are cast to 16 bits for each


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a network that decide its memory, in numbers."""

    weights: int
    linear_weights: int  # without the output layer: what quantization covers
    matrix_edges: int  # rows + columns of all matrices
    adapter_edges: int  # rows + columns of the linear layers: the weights of adapters of rank 1
    layers: int
    width: int
    query_width: int
    key_width: int
    mlp_width: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """What decides the memory beside the model: the settings, the arithmetic, and how processes share the work."""

    settings: Training
    precision: Precision
    strategy: ParallelStrategy
    processes: int
    offload: Offload


@dataclass(frozen=True, slots=True)
class LargestMicroBatch:
    """Tokens of the micro-batch with the most of them, padding included, and its learned ones."""

    tokens: int
    learned: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on each GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    def fits(self, gpu_bytes: int) -> bool:
        return self.total <= USABLE_SHARE * gpu_bytes


def shape_of(model_path: Path) -> ModelShape:
    """Of the model that a configuration describes; reads no weights. Raises ModelError where it describes none."""
    network = outline_of(model_path)
    config, head = network.config.get_text_config(), output_layer(network)
    modules = [module for module in network.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    matrices = [weights for weights in network.parameters() if weights.dim() == 2]
    width = int(config.hidden_size)
    heads = getattr(config, "num_attention_heads", None) or 1
    head_width = getattr(config, "head_dim", None) or width // heads
    return ModelShape(
        weights=sum(weights.numel() for weights in network.parameters()),
        linear_weights=sum(module.weight.numel() for module in modules),
        matrix_edges=sum(sum(weights.shape) for weights in matrices),
        adapter_edges=sum(module.in_features + module.out_features for module in modules),
        layers=int(config.num_hidden_layers),
        width=width,
        query_width=heads * head_width,
        key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_width,
        mlp_width=getattr(config, "intermediate_size", None) or 4 * width,
        vocabulary=int(config.vocab_size),
    )


def device_memory(shape: ModelShape, setup: TrainingSetup, batch: LargestMicroBatch) -> DeviceMemory:
    """The estimate, by the formulas of the module."""
    settings, n, strategy = setup.settings, setup.processes, setup.strategy
    is_zero, bytes_ = strategy.startswith("zero"), _bytes_of(setup.precision)
    trained = trained_weights(shape, settings)
    weights = _weight_bytes(shape, setup, trained)
    gradients = 4 * trained * (2 if strategy == "ddp" else 1)
    optimizer = optimizer_bytes(shape, settings) + (4 * trained if is_zero else 0)
    one_layer = bytes_ * (shape.weights // max(1, shape.layers))
    chunk = min(batch.learned, max(1, CHUNK_LOGITS // shape.vocabulary))
    return DeviceMemory(
        weights=weights // n + one_layer if strategy in ("fsdp", "zero3") else weights,
        gradients=gradients // n if strategy in ("fsdp", "zero2", "zero3") else gradients,
        optimizer=0 if setup.offload != "none" else optimizer // n if is_zero or strategy == "fsdp" else optimizer,
        activations=_activation_bytes(shape, setup, batch.tokens),
        logits=chunk * shape.vocabulary * (8 + 2 * bytes_),
    )


def optimizer_bytes(shape: ModelShape, settings: Training) -> int:
    """The state of the optimizer for all trained weights."""
    trained, is_full = trained_weights(shape, settings), settings.method == "full"
    match settings.optimizer:
        case "adafactor":
            return 4 * (shape.matrix_edges if is_full else trained)
        case "adamw_8bit":
            embeddings = shape.vocabulary * shape.width if is_full else 0
            return int(EIGHT_BIT_MOMENTS * (trained - embeddings)) + 8 * embeddings
        case "muon":
            return 4 * trained + 4 * (shape.weights - shape.linear_weights if is_full else 0)
        case _:
            return 8 * trained


def trained_weights(shape: ModelShape, settings: Training) -> int:
    """All, or those of the adapters. (Adapters on named modules are counted as if on all linear layers.)"""
    return shape.weights if settings.method == "full" else settings.lora.r * shape.adapter_edges


def nearest_fit(
    shape: ModelShape, setup: TrainingSetup, batch: LargestMicroBatch, longest: int, gpu_bytes: int
) -> tuple[TrainingSetup, DeviceMemory] | None:
    """The setup that changes least, of those whose estimate fits into a GPU; None where none does. `longest` is the
    length of the longest sample, which every micro-batch must hold."""
    for candidate in _candidates(setup):
        share = candidate.settings.per_device_batch_size / setup.settings.per_device_batch_size
        tokens = max(min(longest, batch.tokens), int(batch.tokens * share))
        smaller = LargestMicroBatch(tokens, min(batch.learned, tokens))
        memory = device_memory(shape, candidate, smaller)
        if memory.fits(gpu_bytes):
            return candidate, memory
    return None


def _candidates(setup: TrainingSetup) -> Iterator[TrainingSetup]:
    """Setups from the nearest to the farthest: what changes the speed alone comes before what changes the result."""
    yield setup
    lighter = replace(setup, settings=setup.settings.model_copy(update={"gradient_checkpointing": True}))
    strategies: list[ParallelStrategy] = [setup.strategy]
    is_divisible = fits_strategy(setup.settings.optimizer, "fsdp")
    if setup.processes > 1 and setup.strategy not in ("fsdp", "zero3") and is_divisible:
        strategies.append("fsdp")
    for method in dict.fromkeys([setup.settings.method, "lora", "qlora"]):
        for strategy in strategies:
            if method != "qlora" or strategy in ("alone", "ddp"):
                yield from _smaller_batches(replace(lighter, strategy=strategy), method)


def _smaller_batches(setup: TrainingSetup, method: str) -> Iterator[TrainingSetup]:
    """Halves the samples of a micro-batch, and doubles the accumulation, so that a step stays what it was."""
    settings = setup.settings.model_copy(update={"method": method})
    while True:
        yield replace(setup, settings=settings)
        if settings.per_device_batch_size == 1:
            return
        smaller = settings.per_device_batch_size // 2
        accumulated = settings.per_device_batch_size * settings.gradient_accumulation_steps // smaller
        settings = settings.model_copy(
            update={"per_device_batch_size": smaller, "gradient_accumulation_steps": accumulated}
        )


def _weight_bytes(shape: ModelShape, setup: TrainingSetup, trained: int) -> int:
    settings, bytes_ = setup.settings, _bytes_of(setup.precision)
    if settings.method == "full":
        copies = bytes_ if bytes_ < 4 and setup.strategy in ("alone", "ddp") else 0
        return (bytes_ if setup.strategy.startswith("zero") else 4) * trained + copies * trained
    frozen = 4 if setup.strategy == "fsdp" else bytes_
    if settings.method == "lora":
        return frozen * shape.weights + 4 * trained
    quantized = int(QUANTIZED_BYTES[settings.quantization.bits] * shape.linear_weights)
    return quantized + bytes_ * (shape.weights - shape.linear_weights) + 4 * trained


def _activation_bytes(shape: ModelShape, setup: TrainingSetup, tokens: int) -> int:
    bytes_, casts = _bytes_of(setup.precision), CASTS_OF_A_LAYER
    is_full = setup.settings.method == "full"
    hidden = 4 if is_full and not setup.strategy.startswith("zero") else bytes_
    if bytes_ == 4:
        casts = 2  # nothing is cast: the linear layers keep the two results of the norms
    layer = 2 * (hidden + SAVED_NORM_BYTES) * shape.width + casts * bytes_ * shape.width
    layer += 2 * bytes_ * (shape.query_width + shape.key_width) + 4 * bytes_ * shape.mlp_width
    if setup.settings.gradient_checkpointing:
        return tokens * (hidden * shape.width * shape.layers + layer)
    return tokens * layer * shape.layers


def _bytes_of(precision: Precision) -> int:
    return 4 if precision == "float32" else 2
