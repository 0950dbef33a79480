"""How several processes share a training: each has a whole model (DDP), or parts of optimizer, gradients and weights
(FSDP2; ZeRO-1, -2 and -3 of DeepSpeed).

`choose_strategy` decides and says why; `sharing_arguments` is what the Trainer has to be told; `require_in_force` looks
at what it has made of that, because accelerate trains with plain DDP without a word where it cannot do FSDP."""

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
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from codetune.errors import CodetuneError, ProjectError
from codetune.project.sections import Launch, Method

Offload = Literal["none", "optimizer", "all"]
Strategy = Literal["alone", "ddp", "fsdp", "zero1", "zero2", "zero3"]
SHARDED: tuple[Strategy, ...] = ("fsdp", "zero3")  # no process has the whole model
# Weights, gradients and the two moments of AdamW in float32; frozen weights in 16 bits.
BYTES_TRAINED, BYTES_FROZEN = 16, 2
# The rest of a GPU's memory is for activations and logits.
SHARE_FOR_STATE = 0.6


@dataclass(frozen=True, slots=True)
class Choice:
    strategy: Strategy
    why: str


@dataclass(frozen=True, slots=True)
class Size:
    """Of the model that is trained, in parameters; and of the GPUs of a machine, the memory of one of them in bytes
    (None: there is none)."""

    trained: int
    frozen: int
    gpu_bytes: int | None


def choose_strategy(launch: Launch, method: Method, processes: int, size: Size) -> Choice:
    """Raises ProjectError where the strategy that the project names cannot work here."""
    if launch.strategy == "auto":
        return _automatic(method, processes, size)
    if launch.strategy == "fsdp" and size.gpu_bytes is None:
        raise ProjectError(
            "launch.strategy is fsdp, and there is no GPU: on CPUs it would silently be DDP. Expected: a strategy that "
            "works here. Set launch.strategy: ddp, or zero2"
        )
    if launch.strategy.startswith("zero"):
        _require_deepspeed(launch.strategy)
    if launch.strategy == "ddp" and processes == 1:
        return Choice("alone", "there is one process")
    return Choice(launch.strategy, "the project says so")


def _automatic(method: Method, processes: int, size: Size) -> Choice:
    if processes == 1:
        return Choice("alone", "there is one process")
    if size.gpu_bytes is None:
        return Choice("ddp", "there is no GPU")
    if method == "qlora":
        return Choice("ddp", "quantised weights are small enough for every GPU")
    needed = BYTES_TRAINED * size.trained + BYTES_FROZEN * size.frozen
    told = f"weights, gradients and optimizer are {needed / 1e9:.1f} GB, a GPU has {size.gpu_bytes / 1e9:.1f} GB"
    if needed <= SHARE_FOR_STATE * size.gpu_bytes:
        return Choice("ddp", f"{told}: each holds them whole")
    return Choice("fsdp", f"{told}: {processes} processes share them")


def _require_deepspeed(strategy: str) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise ProjectError(
            f"launch.strategy is {strategy}, and DeepSpeed is not installed. Expected: the package deepspeed. Install "
            "it (pip install deepspeed), or set launch.strategy: auto"
        )


def fact_of(strategy: Strategy, processes: int) -> str:
    """What a checkpoint must share with the training that continues it. Whole models and FSDP's checkpoints fit any
    number of processes, DeepSpeed's only the one that wrote them."""
    if strategy.startswith("zero"):
        return f"{strategy} in {processes} processes"
    return "fsdp" if strategy == "fsdp" else "ddp"


def sharing_arguments(strategy: Strategy, offload: Offload, precision: str, handed_out: bool) -> dict[str, Any]:
    """Arguments of `TrainingArguments`. `handed_out`: under FSDP the first process alone has read the weights, and the
    others get their parts from it. (For DeepSpeed's stage 3 each process reads them, and keeps its part.)"""
    if strategy == "fsdp":
        settings = {
            "version": 2,
            "cpu_offload": offload == "all",
            "cpu_ram_efficient_loading": handed_out,
            # A checkpoint in parts: no process has to hold the whole model for it, and any number of them can read it.
            "state_dict_type": "SHARDED_STATE_DICT",
        }
        return {"fsdp": True, "fsdp_config": settings}
    if strategy in ("zero1", "zero2", "zero3"):
        return {"deepspeed": _deepspeed_settings(int(strategy[-1]), offload, precision)}
    return {}


def _deepspeed_settings(stage: int, offload: Offload, precision: str) -> dict[str, Any]:
    sharing: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if offload != "none":
        sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if offload == "all":
        sharing["offload_param"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        sharing["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": sharing,
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


def prepare_sharing(strategy: Strategy) -> None:
    """What a library has to be told before it shares anything.

    On CPUs DeepSpeed compiles sums over shared memory when it begins, which only its inference uses: that takes a
    minute, asks for g++ and ninja, and waits for ever for the lock of a build that was killed. And it has to know of
    the other processes before a model is loaded of which each keeps a part."""
    if not strategy.startswith("zero"):
        return
    from deepspeed import comm, ops

    # DeepSpeed 0.19 calls what torch 2.13 has renamed; no user can do anything about it.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    comm.init_distributed(auto_mpi_discovery=False, verbose=False)


class InForce(TrainerCallback):
    """Looks, when the training begins, whether the strategy that was chosen is the one in force."""

    def __init__(self, strategy: Strategy, trainer: Trainer) -> None:
        self._strategy, self._trainer = strategy, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        require_in_force(self._strategy, self._trainer, self._trainer.model_wrapped)


def require_in_force(strategy: Strategy, trainer: Trainer, wrapped: torch.nn.Module) -> None:
    """`wrapped` is what the Trainer trains."""
    found = _in_force(trainer, wrapped)
    # One process that a launcher has started is wrapped all the same.
    if found != strategy and (strategy, found) != ("alone", "ddp"):
        raise CodetuneError(
            f"launch.strategy {strategy} was asked for, and {found} is in force (accelerate's type is "
            f"{trainer.accelerator.distributed_type}). Expected: what was asked for. Set launch.strategy: {found}, or "
            "mend the installation of accelerate"
        )


def _in_force(trainer: Trainer, wrapped: torch.nn.Module) -> str:
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage: Any = wrapped.zero_optimization_stage  # an engine of DeepSpeed
        return f"zero{stage()}"
    if any(isinstance(weights, DTensor) for weights in wrapped.parameters()):
        return "fsdp"
    return "ddp" if isinstance(wrapped, DistributedDataParallel) else "alone"


def is_whole(network: torch.nn.Module) -> bool:
    """Whether this process has all of every weight."""
    return not any(isinstance(weights, DTensor) or hasattr(weights, "ds_id") for weights in network.parameters())


def keep_float32(trainer: Trainer, strategy: Strategy) -> None:
    """FSDP sums gradients over processes in float32, as DDP does, and hands losses on as they are. Accelerate's default
    is 16 bits for both."""
    plugin = trainer.accelerator.state.fsdp_plugin if strategy == "fsdp" else None
    if plugin is not None and plugin.mixed_precision_policy is not None:
        computed_in = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32)


def whole_weights(strategy: Strategy, trainer: Trainer) -> Mapping[str, torch.Tensor] | None:
    """All weights, on the CPU of the first process, where no process has them whole; every process has to ask. None
    where the model itself has them."""
    if strategy not in SHARDED or (trainer.model_wrapped is trainer.model and strategy != "fsdp"):
        return None
    weights: Mapping[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


@contextmanager
def loading_whole(arguments: TrainingArguments) -> Iterator[None]:
    """Models that are loaded meanwhile are whole, whatever the arguments say."""
    disable_fsdp_ram_efficient_loading()
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    yield
    if (shared := getattr(arguments, "hf_deepspeed_config", None)) is not None:
        set_hf_deepspeed_config(shared)  # type: ignore[no-untyped-call]
