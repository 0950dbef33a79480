"""A network -> the same network, whose decoder layers torch.compile runs as one graph each ("regional compilation",
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html). Layers of a kind share their graph, and sizes in
it are symbols, so micro-batches of all lengths do as well. Embeddings, the loss and evaluations are not compiled.

A layer of which torch cannot make a single graph is an error: its parts would be compiled anew for many lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor import config as inductor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from codetune.errors import CodetuneError, ModelError, ProjectError, first_line
from codetune.launch.devices import compiler_fault
from codetune.project.sections import Project
from codetune.training.checkpoint import continuation
from codetune.training.parallelism import ParallelStrategy

# The kinds of devices, such as cuda, on which `train.compile: auto` compiles: those for which a record in
# tests/performance/results shows that it pays (`make gpu` measures it). There is none yet.
AUTO_COMPILES_ON: tuple[str, ...] = ()
INSTALL = "apt install g++ python3-dev (triton comes with the torch for GPUs)"
INSTEAD = "Or set train.compile: never"


def is_compiled(project: Project, strategy: ParallelStrategy, device: str) -> bool:
    """Whether the layers are compiled on this device. `auto` never compiles what `always` refuses."""
    if project.train.compile == "auto":
        return torch.device(device).type in AUTO_COMPILES_ON and not _reason_against(project, strategy)
    return project.train.compile == "always"


def require_compilable(project: Project, strategy: ParallelStrategy, device: str) -> None:
    """Raises ProjectError where the layers are to be compiled, and the settings do not allow it or nothing on this
    machine can compile for the device (found by trying)."""
    if not is_compiled(project, strategy, device):
        return
    if reason := _reason_against(project, strategy):
        raise ProjectError(f"train.compile is always, and {reason}. {INSTEAD}")
    if fault := compiler_fault(device):
        raise ProjectError(
            f"train.compile is {project.train.compile}, and torch.compile does not work here ({fault}). Expected: a "
            f"C++ compiler with Python's headers, and triton for a GPU. Install them: {INSTALL}. {INSTEAD}"
        )


def _reason_against(project: Project, strategy: ParallelStrategy) -> str:
    """Why layers cannot be compiled with these settings, and which setting to change; "" if they can."""
    train = project.train
    if strategy not in ("alone", "ddp"):
        return (
            f"launch.strategy is {strategy}, which gathers and divides weights around the layers: no test shows that "
            "compiled layers learn the same then. Expected: processes that hold the whole model. Set launch.strategy: "
            "ddp"
        )
    if train.method != "full" and train.lora.dora:
        return (
            "train.lora.dora is true, of whose adapters torch can make no graph. Expected: plain adapters. Set "
            "train.lora.dora: false"
        )
    if project.model.attention == "flash":
        return (
            "model.attention is flash, which no test has shown in a graph. Expected: an attention of torch. Set "
            "model.attention: varlen"
        )
    return ""


def decoder_layers(network: PreTrainedModel) -> list[torch.nn.Module]:
    """Raises ModelError for an architecture that has none."""
    layers: list[torch.nn.Module] = [
        module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise ModelError(
            f"The layers are to be compiled (train.compile), and {type(network).__name__} has none as transformers "
            "writes them. Expected: an architecture that has. Set train.compile: never"
        )
    return layers


def compile_layers(network: PreTrainedModel) -> None:
    """Makes torch compile each decoder layer when it first runs. The names of the weights stay as they are. Raises
    ModelError as `decoder_layers` does."""
    torch.compiler.reset()  # torch gives up after 8 graphs, and would count those of earlier trainings of this process
    inductor.fallback_random = True  # dropout as without compiling: torch's generator draws it
    # DDP's own cuts of graphs make every size in them fixed (https://github.com/pytorch/pytorch/issues/140229).
    dynamo.optimize_ddp = False
    for layer in decoder_layers(network):
        layer.compile(dynamic=True, fullgraph=True)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside the block layers run as if they were not compiled: for inputs of other kinds than those of a step."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def explain_uncompilable(directory: Path, is_interrupted: Callable[[], bool]) -> Iterator[None]:
    """Turns what torch.compile raises into a CodetuneError that says where the training in `directory` goes on, or into
    KeyboardInterrupt: Ctrl-C ends a compiler that is at work as well."""
    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as why:
        if is_interrupted():
            raise KeyboardInterrupt from why
        found = first_line(getattr(why, "inner_exception", why))
        raise CodetuneError(
            f"torch.compile cannot make a layer one graph ({found}). Expected: an architecture and an attention of "
            f"which it can. Set train.compile: never; the training {continuation(directory)}"
        ) from why
