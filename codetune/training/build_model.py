"""Directory of a base model -> the network that is trained, and what trains it.

`load_base_model` reads the weights, `prepare_model` sets attention, activation checkpointing and adapters,
`training_inputs` collects what the Trainer needs besides: step order, batches, loss. `rebuild_model` makes a whole
model of gathered weights at the end, where no rank holds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from codetune.data.packing import PACKED, MicroBatchPlan
from codetune.data.token_cache import TokenCache
from codetune.errors import ModelError, ProjectError
from codetune.launch.devices import choose_device
from codetune.launch.process_group import ProcessGroup
from codetune.model.adapters import add_adapters, base_network
from codetune.model.attention import (
    KERNELS,
    AttentionSpec,
    attention_implementation,
    require_no_chunked_attention,
    set_default_attention,
)
from codetune.model.file_check import ADAPTER_CONFIG
from codetune.model.load import (
    load_model,
    load_quantized_model,
    require_bitsandbytes,
    uninitialized_model,
)
from codetune.model.packing_check import ShardedNetwork, require_isolation
from codetune.model.plain_layers import input_embeddings
from codetune.project.sections import Precision, Project, Training
from codetune.training.batch_sampler import RankDataset, StepSampler, samples_per_step
from codetune.training.collate import Collator
from codetune.training.compilation import decoder_layers, is_compiled
from codetune.training.holdout import HoldoutBatches
from codetune.training.loss import LossFunction, loss_function
from codetune.training.metrics import FlopCounter, peak_flops_per_second
from codetune.training.parallelism import SHARDED, ParallelStrategy, is_unsharded, without_sharded_loading

JudgeTasks = Callable[[], tuple[int, int]]  # how many tasks passed, and how many were judged in this rank


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that the training starts from, the precision of the arithmetic, and how the ranks divide it."""

    path: Path
    precision: Precision
    strategy: ParallelStrategy

    @property
    def loads_sharded(self) -> bool:
        """Whether each rank keeps a shard while it loads. Not where adapters are merged into whole weights first."""
        return self.strategy in SHARDED and not (self.path / ADAPTER_CONFIG).is_file()

    @property
    def broadcasts_weights(self) -> bool:
        """Whether rank 0 alone reads the weights, and sends each other rank its shard."""
        return self.strategy == "fsdp" and self.loads_sharded

    def loading(self, arguments: TrainingArguments) -> AbstractContextManager[None]:
        whole = self.strategy in SHARDED and not self.loads_sharded
        return without_sharded_loading(arguments) if whole else nullcontext()


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """The inputs of the Trainer besides the model."""

    sampler: StepSampler
    dataset: RankDataset
    collator: Collator
    build_loss: Callable[[torch.nn.Module], LossFunction]  # takes the module that the strategy has wrapped the model in
    settings: Training
    flop_counter: FlopCounter | None
    peak_flops_per_second: float | None  # of this rank's GPU
    strategy: ParallelStrategy
    compiled: bool
    holdout: HoldoutBatches | None
    judge_tasks: JudgeTasks | None


def arithmetic_precision(project: Project) -> Precision:
    """`model.dtype`."""
    assert project.model.dtype != "auto"  # a run has a format in its place
    return project.model.dtype


def load_base_model(project: Project, base: BaseModel, is_first: bool) -> PreTrainedModel:
    """Trained weights are float32, because updates are smaller than the resolution of bfloat16. Frozen weights have the
    arithmetic's precision, but float32 under FSDP, which shards only weights of one type (and computes in 16 bits
    nevertheless). FSDP shards a model in CPU memory, so no GPU has to hold it whole."""
    dtype = "float32" if project.train.method == "full" or base.strategy == "fsdp" else base.precision
    settings = project.model.model_copy(update={"dtype": dtype, "attention": "auto"})
    if project.train.method == "qlora":
        return load_quantized_model(base.path, settings, choose_device(), project.train.quantization)
    if base.broadcasts_weights and not is_first:
        return uninitialized_model(base.path, settings)
    return load_model(base.path, settings, "cpu" if base.strategy == "fsdp" else choose_device())


def require_fit(network: PreTrainedModel, settings: Training, token_cache: TokenCache) -> None:
    """Raises ModelError for token ids without an embedding, ProjectError for samples longer than the model's window,
    and for packed or padded samples that would change each other's positions."""
    vocabulary = input_embeddings(network).num_embeddings
    if token_cache.largest_token >= vocabulary:
        raise ModelError(
            f"The tokenizer gives token {token_cache.largest_token}, the model's embeddings end at {vocabulary - 1}. "
            "Expected: a tokenizer that belongs to the model. Set model.path to a directory where they do."
        )
    window = getattr(network.config, "max_position_embeddings", None)
    if window is not None and token_cache.longest > window:
        raise ProjectError(
            f"The longest sample has {token_cache.longest} tokens, the model's window {window}. Expected: samples that "
            f"fit. Set train.max_length: {window}"
        )
    _require_independent_positions(network, settings, token_cache)


def _require_independent_positions(network: PreTrainedModel, settings: Training, token_cache: TokenCache) -> None:
    """LongRoPE (Phi-3 with 128k tokens) changes the frequencies of the whole micro-batch as soon as one of its samples
    is longer than the window of the first pre-training (transformers, modeling_rope_utils)."""
    rope = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    window = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    is_padded = settings.pad_mode == "max_length"
    longest = settings.max_length if is_padded else token_cache.longest
    if window is not None and longest > window and (is_padded or settings.per_device_batch_size > 1):
        raise ProjectError(
            f"{type(network).__name__} embeds the positions of all samples of a micro-batch differently where one has "
            f"more than {window} tokens, and here one has {longest}. Expected: samples that do not change each other. "
            f"Set train.max_length: {window}, or train.pad_mode: dynamic_pack with train.per_device_batch_size: 1"
        )


def prepare_model(network: PreTrainedModel, project: Project, base: BaseModel) -> PreTrainedModel | PeftModel:
    """The network as it is trained (layers are compiled later). Raises ModelError for an attention that cannot work
    here, or that cannot isolate packed samples."""
    settings = project.train
    packed = settings.pad_mode in PACKED
    asked, device = project.model.attention, choose_device()
    spec, compiled = AttentionSpec.of(network, base.precision, device), is_compiled(project, base.strategy, device)
    attention = attention_implementation(asked, packed, spec, compiled=compiled)
    if asked == "auto" and attention == "sdpa":
        set_default_attention(network)
    else:
        network.set_attn_implementation(attention)
    if packed or attention in KERNELS.values():
        require_no_chunked_attention(network, settings.max_length)
    if settings.gradient_checkpointing:
        _checkpoint_activations(network)
    if compiled:
        decoder_layers(network)
    return add_adapters(network, settings.method, settings.lora, project.seed)


def require_preparable(project: Project, base: BaseModel) -> None:
    """Raises ModelError and ProjectError for a model that `prepare_model` would refuse; reads no weights."""
    if project.train.method == "qlora":
        require_bitsandbytes()
    settings = project.model.model_copy(update={"dtype": base.precision, "attention": "auto"})
    with torch.device("meta"):
        prepare_model(uninitialized_model(base.path, settings), project, base)


def training_inputs(
    model: PreTrainedModel | PeftModel,
    project: Project,
    base: BaseModel,
    token_cache: TokenCache,
    holdout: TokenCache | None,
    group: ProcessGroup,
    judge_tasks: JudgeTasks | None = None,
) -> TrainingInputs:
    settings, network, device = project.train, base_network(model), choose_device()
    rank, pad_token = group.member.rank, _pad_token(network)
    plan = MicroBatchPlan(
        settings.pad_mode,
        settings.per_device_batch_size,
        group.count,
        settings.sort_in_step,
        network.config.get_text_config().hidden_size,
    )
    return TrainingInputs(
        StepSampler(len(token_cache), samples_per_step(settings, group.count), project.seed),
        RankDataset(token_cache, plan, rank),
        Collator(settings.pad_mode, settings.max_length, settings.pack_isolation, pad_token),
        partial(_build_loss, network, settings, base.precision),
        settings,
        FlopCounter.of(network, settings.method),
        None if device == "cpu" else peak_flops_per_second(base.precision, torch.cuda.get_device_name(device)),
        base.strategy,
        is_compiled(project, base.strategy, device),
        None if holdout is None else HoldoutBatches.of(holdout, plan, rank, settings.max_length, pad_token),
        judge_tasks,
    )


def rebuild_model(
    project: Project, base: BaseModel, weights: Mapping[str, torch.Tensor]
) -> PreTrainedModel | PeftModel:
    """A whole model in CPU memory, of the kind that was trained, with the gathered weights."""
    settings = project.model.model_copy(update={"dtype": base.precision, "attention": "auto"})
    network = load_model(base.path, settings, "cpu")
    model = add_adapters(network, project.train.method, project.train.lora, project.seed)
    found = model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    return model


def _build_loss(
    network: PreTrainedModel, settings: Training, precision: Precision, wrapped: torch.nn.Module
) -> LossFunction:
    """Called when training begins, so that the checks run on the wrapped model. Raises ModelError where packed samples
    attend to each other although `pack_isolation` is true."""
    device = choose_device()
    sharded = None if is_unsharded(network) else ShardedNetwork(wrapped, device)
    dtype = getattr(torch, precision)  # the arithmetic of the Trainer
    with torch.autocast(torch.device(device).type, dtype, enabled=precision != "float32"):
        if settings.pad_mode in PACKED and settings.pack_isolation:
            require_isolation(network, sharded)
        return loss_function(network, sharded)


def _pad_token(network: PreTrainedModel) -> int:
    """The pad token of the configuration where it is in the vocabulary, else 0: no sample attends to padding."""
    token = getattr(network.config.get_text_config(), "pad_token_id", None)
    return token if isinstance(token, int) and 0 <= token < input_embeddings(network).num_embeddings else 0


def _checkpoint_activations(network: PreTrainedModel) -> None:
    """Not the reentrant kind: it fails with adapters, and with several processes."""
    options = {"use_reentrant": False}
    try:
        if hasattr(network, "activation_checkpointing_enable"):  # transformers 5.23; 5.17 has the older name only
            network.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[no-untyped-call]
    except ValueError as why:
        raise ModelError(
            f"train.gradient_checkpointing is true, and transformers cannot do that with {type(network).__name__}. "
            "Expected: an architecture that supports it. Set train.gradient_checkpointing: false"
        ) from why
