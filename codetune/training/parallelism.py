"""The ways in which ranks divide a training: each holds the whole model (DDP), or shards of optimizer state, gradients
and weights (FSDP2; ZeRO-1, -2 and -3 of DeepSpeed, Rajbhandari et al. 2020).

`choose_strategy` decides and gives the reason; `strategy_arguments` are what the Trainer needs for it;
`require_strategy` checks the result, because accelerate silently trains with DDP where it cannot do FSDP."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from codetune.errors import CodetuneError, ProjectError
from codetune.project.sections import Launch, Method, Precision

Offload = Literal["none", "optimizer", "all"]
ParallelStrategy = Literal["alone", "ddp", "fsdp", "zero1", "zero2", "zero3"]
SHARDED: tuple[ParallelStrategy, ...] = ("fsdp", "zero3")  # no rank holds the whole model
# Weight, gradient and the two moments of AdamW in float32; frozen weights in 16 bits.
BYTES_PER_TRAINED_WEIGHT, BYTES_PER_FROZEN_WEIGHT = 16, 2
# The rest of a GPU's memory is for activations and logits.
MEMORY_SHARE_FOR_STATE = 0.6


@dataclass(frozen=True, slots=True)
class StrategyChoice:
    strategy: ParallelStrategy
    reason: str


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Weights of the model, and the memory of one GPU (None without a GPU)."""

    trained: int
    frozen: int
    gpu_bytes: int | None


def choose_strategy(launch: Launch, method: Method, processes: int, size: ModelSize) -> StrategyChoice:
    """Raises ProjectError where the strategy that the project names cannot work on this machine."""
    if launch.strategy == "auto":
        return _automatic(method, processes, size)
    if launch.strategy == "fsdp" and size.gpu_bytes is None:
        raise ProjectError(
            "launch.strategy is fsdp, and there is no GPU: on CPUs it would silently be DDP. Expected: a strategy that "
            "works here. Set launch.strategy: ddp, or zero2"
        )
    if launch.strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ProjectError(
            f"launch.strategy is {launch.strategy}, and DeepSpeed is not installed. Expected: the package deepspeed. "
            "Install it (pip install deepspeed), or set launch.strategy: auto"
        )
    if launch.strategy == "ddp" and processes == 1:
        return StrategyChoice("alone", "there is one process")
    return StrategyChoice(launch.strategy, "the project says so")


def _automatic(method: Method, processes: int, size: ModelSize) -> StrategyChoice:
    if processes == 1:
        return StrategyChoice("alone", "there is one process")
    if size.gpu_bytes is None:
        return StrategyChoice("ddp", "there is no GPU")
    if method == "qlora":
        return StrategyChoice("ddp", "quantised weights are small enough for every GPU")
    needed = BYTES_PER_TRAINED_WEIGHT * size.trained + BYTES_PER_FROZEN_WEIGHT * size.frozen
    sizes = f"weights, gradients and optimizer are {needed / 1e9:.1f} GB, a GPU has {size.gpu_bytes / 1e9:.1f} GB"
    if needed <= MEMORY_SHARE_FOR_STATE * size.gpu_bytes:
        return StrategyChoice("ddp", f"{sizes}: each holds them whole")
    return StrategyChoice("fsdp", f"{sizes}: {processes} processes share them")


def checkpoint_compatibility(strategy: ParallelStrategy, processes: int) -> str:
    """The strategy in the fingerprint of a checkpoint. Checkpoints of DeepSpeed fit only the number of processes that
    wrote them, others any number."""
    if strategy.startswith("zero"):
        return f"{strategy} in {processes} processes"
    return "fsdp" if strategy == "fsdp" else "ddp"


def strategy_arguments(
    strategy: ParallelStrategy, offload: Offload, precision: Precision, broadcast_weights: bool
) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments`. With `broadcast_weights`, under FSDP, rank 0 alone reads the weights
    and sends each other rank its shard. (Under ZeRO-3 each rank reads them.)"""
    if strategy == "fsdp":
        settings = {
            "version": 2,
            "cpu_offload": offload == "all",
            "cpu_ram_efficient_loading": broadcast_weights,
            # A sharded checkpoint: no rank has to hold the whole model for it, and any number of ranks can read it.
            "state_dict_type": "SHARDED_STATE_DICT",
        }
        return {"fsdp": True, "fsdp_config": settings}
    if strategy.startswith("zero"):
        return {"deepspeed": _deepspeed_settings(int(strategy[-1]), offload, precision)}
    return {}


def _deepspeed_settings(stage: int, offload: Offload, precision: Precision) -> dict[str, object]:
    zero: dict[str, object] = {"stage": stage, "contiguous_gradients": True}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        # The project's optimizer, also where weights are in CPU memory: the same updates under every strategy.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": precision == "bfloat16"},
        "fp16": {"enabled": precision == "float16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1_000_000_000,
    }


def prepare_deepspeed(strategy: ParallelStrategy) -> None:
    """Sets up DeepSpeed where the strategy uses it. To be called before the model is loaded, for ZeRO-3 to shard it."""
    if not strategy.startswith("zero"):
        return
    from deepspeed import comm, ops

    # DeepSpeed 0.19 calls functions that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    # On CPUs it would compile this operation, of its inference only: that takes a minute, needs g++ and ninja, and
    # waits forever for the lock of a build that was killed.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    comm.init_distributed(auto_mpi_discovery=False, verbose=False)


def require_strategy(strategy: ParallelStrategy, trainer: Trainer, wrapped: torch.nn.Module) -> None:
    """Raises CodetuneError where another strategy is in force. `wrapped` is the module that the Trainer calls: the
    model, or what is around it."""
    found = _strategy_in_force(trainer, wrapped)
    # A single process that a launcher has started is wrapped in DDP as well.
    if found != strategy and (strategy, found) != ("alone", "ddp"):
        raise CodetuneError(
            f"launch.strategy {strategy} was asked for, and {found} is in force (accelerate's type is "
            f"{trainer.accelerator.distributed_type}). Expected: what was asked for. Set launch.strategy: {found}, or "
            "repair the installation of accelerate"
        )


def _strategy_in_force(trainer: Trainer, wrapped: torch.nn.Module) -> str:
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage: Any = wrapped.zero_optimization_stage  # `wrapped` is a DeepSpeedEngine
        return f"zero{stage()}"
    if any(isinstance(weights, DTensor) for weights in wrapped.parameters()):
        return "fsdp"
    return "ddp" if isinstance(wrapped, DistributedDataParallel) else "alone"


def is_unsharded(network: torch.nn.Module) -> bool:
    """Whether this rank holds all of every weight."""
    return not any(isinstance(weights, DTensor) or hasattr(weights, "ds_id") for weights in network.parameters())


def reduce_gradients_in_float32(trainer: Trainer, strategy: ParallelStrategy) -> None:
    """Makes FSDP reduce gradients in float32, as DDP does, and return float32 losses (accelerate: 16 bits for both)."""
    plugin = trainer.accelerator.state.fsdp_plugin if strategy == "fsdp" else None
    if plugin is not None and plugin.mixed_precision_policy is not None:
        param_dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)


def gather_weights(strategy: ParallelStrategy, trainer: Trainer) -> Mapping[str, torch.Tensor] | None:
    """All weights, in the CPU memory of rank 0, where no rank holds them whole; None where the model itself does. A
    collective call: every rank makes it."""
    if strategy not in SHARDED or (trainer.model_wrapped is trainer.model and strategy != "fsdp"):
        return None
    weights: Mapping[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def load_whole_models() -> None:
    """From here on transformers loads whole models in this process."""
    disable_fsdp_ram_efficient_loading()
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


@contextmanager
def without_sharded_loading(arguments: TrainingArguments) -> Iterator[None]:
    """Models loaded inside the block are whole, whatever the arguments say."""
    load_whole_models()
    yield
    if (deepspeed := getattr(arguments, "hf_deepspeed_config", None)) is not None:
        set_hf_deepspeed_config(deepspeed)  # type: ignore[no-untyped-call]
