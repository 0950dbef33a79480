"""A loaded network -> the one that is trained, and what it learns from: attention that keeps samples apart, activations
recomputed, adapters, the steps of this process; and, when the training begins and whatever shares the network over
processes is in place, the loss, after samples were seen to be apart in the very thing that is trained."""

from __future__ import annotations

from functools import partial

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from codetune.data.packing import PACKED, MicroBatchPlan
from codetune.data.token_cache import TokenCache
from codetune.errors import ModelError
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
from codetune.model.packing_check import ShardedNetwork, require_isolation
from codetune.project.sections import Project, Training
from codetune.training.arguments import Precision, arithmetic_in
from codetune.training.batch_sampler import Share, StepPlan, samples_per_step
from codetune.training.collate import Collator
from codetune.training.flops import Arithmetic, peak_operations
from codetune.training.loss import Losses, losses_of
from codetune.training.parallelism import is_whole
from codetune.training.trainer import Material


def make_ready(network: PreTrainedModel, project: Project, precision: Precision) -> PreTrainedModel | PeftModel:
    """Raises ModelError for an attention that cannot work here, or that cannot keep packed samples apart."""
    settings = project.train
    packed = settings.pad_mode in PACKED
    asked = project.model.attention
    wanted = attention_implementation(asked, packed, AttentionSpec.of(network, precision, choose_device()))
    if asked == "auto" and wanted == "sdpa":
        set_default_attention(network)
    else:
        network.set_attn_implementation(wanted)
    if packed or wanted in KERNELS.values():
        require_no_chunked_attention(network, settings.max_length)
    if settings.gradient_checkpointing:
        _recompute_activations(network)
    return add_adapters(network, settings.method, settings.lora, project.seed)


def material_for(
    model: PreTrainedModel | PeftModel,
    project: Project,
    precision: Precision,
    token_cache: TokenCache,
    group: ProcessGroup,
) -> Material:
    """Padding is the pad token of the model's configuration, or any other: no loss and no sample ever looks at it."""
    settings, network = project.train, base_network(model)
    return Material(
        StepPlan(len(token_cache), samples_per_step(settings, group.count), project.seed),
        Share(token_cache, _micro_batch_plan(settings, network, group), group.member.rank),
        Collator(settings.pad_mode, settings.max_length, settings.pack_isolation, _padding(network)),
        partial(_begin, network, project, precision),
        settings,
        Arithmetic.of(network, settings.method),
        _peak_operations(precision),
    )


def _begin(network: PreTrainedModel, project: Project, precision: Precision, trained: torch.nn.Module) -> Losses:
    """`trained` is the network or what has been wrapped around it. Raises ModelError where packed samples see each
    other and must not."""
    device, settings = choose_device(), project.train
    shared = None if is_whole(network) else ShardedNetwork(trained, device)
    with arithmetic_in(precision, torch.device(device)):
        if settings.pad_mode in PACKED and settings.pack_isolation:
            require_isolation(network, shared)
        return losses_of(network, shared)


def _micro_batch_plan(settings: Training, network: PreTrainedModel, group: ProcessGroup) -> MicroBatchPlan:
    width = network.config.get_text_config().hidden_size
    return MicroBatchPlan(settings.pad_mode, settings.per_device_batch_size, group.count, settings.sort_in_step, width)


def _padding(network: PreTrainedModel) -> int:
    token = getattr(network.config.get_text_config(), "pad_token_id", None)
    embeddings: torch.nn.Embedding = network.get_input_embeddings()  # type: ignore[assignment]
    return token if isinstance(token, int) and 0 <= token < embeddings.num_embeddings else 0


def _peak_operations(precision: Precision) -> float | None:
    device = choose_device()
    return None if device == "cpu" else peak_operations(precision, torch.cuda.get_device_name(device))


def _recompute_activations(network: PreTrainedModel) -> None:
    """Never the reentrant kind: it fails with adapters, and with several processes."""
    options = {"use_reentrant": False}
    try:
        if hasattr(network, "activation_checkpointing_enable"):  # transformers 5.23; 5.17 knows the older name only
            network.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[no-untyped-call]
    except ValueError as why:
        raise ModelError(
            f"train.gradient_checkpointing is true, and transformers has none for {type(network).__name__}. Expected: "
            "an architecture that it can do that with. Set train.gradient_checkpointing: false"
        ) from why
