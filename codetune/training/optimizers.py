"""The optimizers and schedules of the project file, as the Trainer of transformers takes them.

`muon` is Muon (Jordan et al. 2024) for the hidden matrices, in the form of Liu et al. 2025 (arXiv 2502.16982, sec.
2.2): its updates have the size of AdamW's, so learning rate and weight decay mean the same. AdamW updates the rest:
embeddings, output layer, norms and biases. `wsd` keeps the learning rate and lowers it in the last tenth of the steps
(warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395, sec. 4) by 1 - sqrt (Hägele et al. 2024, arXiv 2405.18392).

Under FSDP2 Muon gathers each matrix for its step. ZeRO cuts the weights into vectors, which are no matrices; and the
blocks of 8-bit moments would be others in shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from codetune.errors import ProjectError, first_line
from codetune.project.sections import Optimizer, Training
from codetune.training.parallelism import ParallelStrategy

# Optimizers that cannot update weights as some strategies divide them, and why.
DIVIDED: Mapping[Optimizer, tuple[Collection[ParallelStrategy], str]] = {
    "adamw_8bit": (("fsdp", "zero1", "zero2", "zero3"), "which scales its moments by blocks of whole weights"),
    "muon": (("zero1", "zero2", "zero3"), "which updates whole matrices"),
}
LEAST_EIGHT_BIT_WEIGHTS = 4096  # of a tensor: bitsandbytes keeps the moments of smaller ones in 32 bits
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
    if not fits_strategy(optimizer, strategy):
        fitting = "ddp or fsdp" if fits_strategy(optimizer, "fsdp") else "ddp"
        raise ProjectError(
            f"train.optimizer is {optimizer}, {DIVIDED[optimizer][1]}, and launch.strategy {strategy} divides them "
            "among the processes. Expected: an optimizer and a strategy that work together. Set train.optimizer: "
            f"adamw_torch_fused, or launch.strategy: {fitting}"
        )


def require_eight_bit_step() -> None:
    """Raises ProjectError where the bitsandbytes that is installed cannot do a step of its 8-bit AdamW on a CPU."""
    from bitsandbytes.optim.adamw import AdamW8bit  # takes a second, which other optimizers need not wait for

    weights = torch.nn.Parameter(torch.zeros(LEAST_EIGHT_BIT_WEIGHTS))
    weights.grad = torch.ones_like(weights)
    try:
        AdamW8bit([weights]).step()  # type: ignore[no-untyped-call]
    except RuntimeError as why:  # also NotImplementedError: no kernel for the device
        raise ProjectError(
            f"train.optimizer is adamw_8bit, and bitsandbytes cannot do its step on this CPU ({first_line(why)}). "
            "Expected: a build that can. Upgrade it: pip install --upgrade bitsandbytes. Or set train.optimizer: "
            "adamw_torch_fused"
        ) from why


def fits_strategy(optimizer: Optimizer, strategy: ParallelStrategy) -> bool:
    """Whether the optimizer makes the same updates under the strategy as in one process."""
    return optimizer not in DIVIDED or strategy not in DIVIDED[optimizer][0]


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
        self._muon.param_groups = [
            {**group, "params": [weights for weights in group["params"] if not isinstance(weights, DTensor)]}
            for group in self.param_groups
            if MUON_STEP in group
        ]
        self._adamw.param_groups = [group for group in self.param_groups if MUON_STEP not in group]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            for weights in group["params"] if MUON_STEP in group else ():
                if isinstance(weights, DTensor) and weights.grad is not None:
                    _take_sharded_step(weights, group, self.state[weights])
        return loss


@torch.no_grad()
def _take_sharded_step(weights: DTensor, group: Mapping[str, Any], state: MutableMapping[str, torch.Tensor]) -> None:
    """The step of torch's Muon for a matrix in shards (FSDP2). The momentum stays in shards; every rank gathers the
    update and makes it orthogonal as a whole, because sums over shards would round otherwise. A collective call."""
    assert group["nesterov"]
    gradient = cast("DTensor", weights.grad)
    momentum = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
    momentum.lerp_(gradient, 1 - group["momentum"])
    update = cast("DTensor", gradient.lerp(momentum, group["momentum"])).full_tensor()
    change = torch.nn.Parameter(torch.zeros_like(update))
    change.grad = update
    adjust: Any = group["adjust_lr_fn"]
    torch.optim.Muon([change], lr=group["lr"], weight_decay=0.0, momentum=0.0, adjust_lr_fn=adjust).step()  # type: ignore[no-untyped-call]
    own = distribute_tensor(change.detach(), weights.device_mesh, weights.placements, src_data_rank=None)
    weights.mul_(1 - group["lr"] * group["weight_decay"]).add_(own)


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
