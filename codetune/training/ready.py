"""A loaded network -> the one that is trained, and what it learns from: attention that keeps samples apart (tried on
the network itself), activations recomputed, adapters, the steps of this process, and the loss."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from codetune.data.packing import PACKED, Dealing
from codetune.model.adapt import adapt, whole_network
from codetune.model.attention import Site, attention_for, require_isolation, require_no_chunks, set_plain_attention
from codetune.model.ranks import Team
from codetune.project import Project, Training
from codetune.training.arguments import Precision, arithmetic_in
from codetune.training.arithmetic import Arithmetic, peak_operations
from codetune.training.collate import Collator
from codetune.training.corpus import Corpus
from codetune.training.exact import Material
from codetune.training.loss import losses_of
from codetune.training.steps import Share, StepPlan, samples_per_step


def make_ready(network: PreTrainedModel, project: Project, precision: Precision) -> PreTrainedModel | PeftModel:
    """Raises ModelError where packed samples see each other and must not."""
    settings = project.train
    packed = settings.pad_mode in PACKED
    asked = project.model.attention
    wanted = attention_for(asked, packed, Site.of(network, precision))
    if asked == "auto" and wanted == "sdpa":
        set_plain_attention(network)
    else:
        network.set_attn_implementation(wanted)
    if packed and settings.pack_isolation:
        require_no_chunks(network, settings.max_length)
    if packed and settings.pack_isolation:
        with arithmetic_in(precision, network.device):
            require_isolation(network)
    if settings.gradient_checkpointing:
        _recompute_activations(network)
    return adapt(network, settings.method, settings.lora, project.seed)


def material_for(
    model: PreTrainedModel | PeftModel, project: Project, precision: Precision, corpus: Corpus, team: Team
) -> Material:
    """Before anything is wrapped around the model. Padding is its configuration's pad token, or any other: no loss and
    no sample ever looks at it."""
    settings, network = project.train, whole_network(model)
    with arithmetic_in(precision, network.device):
        losses = losses_of(network)
    return Material(
        StepPlan(len(corpus), samples_per_step(settings, team.count), project.seed),
        Share(corpus, _dealing(settings, network, team), team.place.rank),
        Collator(settings.pad_mode, settings.max_length, settings.pack_isolation, _padding(network)),
        losses,
        settings,
        Arithmetic.of(network, settings.method),
        _peak_operations(network, precision),
    )


def _dealing(settings: Training, network: PreTrainedModel, team: Team) -> Dealing:
    width = network.config.get_text_config().hidden_size
    return Dealing(settings.pad_mode, settings.per_device_batch_size, team.count, settings.sort_in_step, width)


def _padding(network: PreTrainedModel) -> int:
    token = network.config.get_text_config().pad_token_id
    return token if isinstance(token, int) and token >= 0 else 0


def _peak_operations(network: PreTrainedModel, precision: Precision) -> float | None:
    if network.device.type != "cuda":
        return None
    return peak_operations(precision, torch.cuda.get_device_name(network.device))


def _recompute_activations(network: PreTrainedModel) -> None:
    """Never the reentrant kind: it fails with adapters, and with several processes."""
    options = {"use_reentrant": False}
    if hasattr(network, "activation_checkpointing_enable"):  # transformers 5.23; 5.17 knows the older name only
        network.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[no-untyped-call]
