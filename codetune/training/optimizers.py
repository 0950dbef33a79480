"""The optimizers and schedules of the project file, as the Trainer of transformers takes them.

`muon` is Muon (Jordan et al. 2024) for the hidden matrices, in the form of Liu et al. 2025 (arXiv 2502.16982, sec.
2.2): its updates have the size of AdamW's, so learning rate and weight decay mean the same. AdamW updates the rest:
embeddings, output layer, norms and biases. `wsd` keeps the learning rate and lowers it in the last tenth of the steps
(warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395, sec. 4) by 1 - sqrt (Hägele et al. 2024, arXiv 2405.18392).

Neither 8-bit moments nor whole matrices can be cut into the shards of FSDP and ZeRO."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from codetune.errors import ProjectError
from codetune.project.sections import Optimizer, Training
from codetune.training.parallelism import ParallelStrategy

WHOLE_WEIGHTS: tuple[Optimizer, ...] = ("adamw_8bit", "muon")  # need every weight whole in each rank
DECAY_SHARE = 0.1  # of the steps, in which `wsd` lowers the learning rate
MUON_STEP = "ns_steps"  # a setting of the groups that Muon updates, and not of AdamW's


def require_optimizer(settings: Training, strategy: ParallelStrategy) -> None:
    """Raises ProjectError for an optimizer that needs a package that is not here, or weights that are not whole."""
    optimizer = settings.optimizer
    if optimizer == "adamw_8bit" and not is_bitsandbytes_available():
        raise ProjectError(
            "train.optimizer is adamw_8bit, and bitsandbytes is not installed. Expected: the package that has it. "
            "Install it: pip install bitsandbytes. Or set train.optimizer: adamw_torch_fused"
        )
    if optimizer in WHOLE_WEIGHTS and strategy not in ("alone", "ddp"):
        raise ProjectError(
            f"train.optimizer is {optimizer}, which updates whole weights, and launch.strategy {strategy} divides them "
            "among the processes. Expected: an optimizer and a strategy that work together. Set train.optimizer: "
            "adamw_torch_fused, or launch.strategy: ddp"
        )


def optimizer_arguments(settings: Training, steps: int) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` for optimizer and schedule. (`StepTrainer` itself makes `muon`.)"""
    arguments: dict[str, Any] = {
        "optim": "adamw_torch" if settings.optimizer == "muon" else settings.optimizer,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": settings.warmup_steps,
    }
    if settings.scheduler == "wsd":
        decay = min(math.ceil(DECAY_SHARE * steps), max(0, steps - settings.warmup_steps))
        options = {"num_decay_steps": decay, "decay_type": "1-sqrt"}
        arguments |= {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": options}
    return arguments


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for others, with one state and one list of groups: a checkpoint and a schedule
    see a single optimizer."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part, is_muon in ((self._muon, True), (self._adamw, False)):
            part.param_groups = [group for group in self.param_groups if (MUON_STEP in group) == is_muon]
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        return loss


def muon_with_adamw(
    model: torch.nn.Module, network: PreTrainedModel, settings: Training, decayed: Collection[str]
) -> MuonWithAdamW:
    """For the trained parameters of `model`, the network or what is around it. `decayed` are the names of those that
    weight decay is for. Raises ProjectError where no matrix of a hidden layer is trained."""
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    hidden = {id(weights) for weights in _hidden_matrices(network)}
    rest = {name: weights for name, weights in trained.items() if id(weights) not in hidden}
    groups = [
        {
            "params": [weights for name, weights in rest.items() if name in decayed],
            "weight_decay": settings.weight_decay,
        },
        {"params": [weights for name, weights in rest.items() if name not in decayed], "weight_decay": 0.0},
    ]
    matrices = [weights for weights in trained.values() if id(weights) in hidden]
    if not matrices:
        raise ProjectError(
            "train.optimizer is muon, which updates the matrices of hidden layers, and none of them is trained. "
            "Expected: adapters on hidden layers. Set train.lora.target_modules: all-linear, or train.optimizer: "
            "adamw_torch_fused"
        )
    return MuonWithAdamW(
        torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, lr=settings.learning_rate),
    )


def _hidden_matrices(network: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of linear layers, adapters' too, but not of the output layer."""
    head = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    outer = {id(module) for module in (head.modules() if head is not None else ())}
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    return [layer.weight for layer in layers if id(layer) not in outer]
