"""Runs `codetune` in several processes with the environment of torchrun, as `Forks`.

Also makes FSDP2 work between CPUs, which torch can do and only accelerate refuses, and prints how much of the model
each process loads."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forks import Forks

LEAKING = "--leaking"  # of these tests alone


@dataclass(frozen=True, slots=True)
class RanksResult:
    exit_statuses: list[int]  # by rank
    stderr: str  # of all ranks


def run_ranks(forks: Forks, count: int, cwd: Path, *arguments: str) -> RanksResult:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [
        forks.start(cwd, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, __name__, *arguments)
        for rank in range(count)
    ]
    written = [rank.communicate()[1] for rank in ranks]
    return RanksResult([rank.wait() for rank in ranks], "".join(written))


def _run_rank() -> None:
    from codetune.__main__ import main

    leaking = LEAKING in sys.argv
    sys.argv = ["codetune", *(word for word in sys.argv[1:] if word != LEAKING)]
    if leaking:
        _break_isolation()
    if "launch.strategy=fsdp" in sys.argv:
        _treat_cpus_as_gpus()
    _print_loaded_weights()
    main()


def _treat_cpus_as_gpus() -> None:
    """Patches what codetune and accelerate check before they use FSDP, and the pinning of CPU memory, which needs a
    GPU."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy

    import codetune.training.train as training

    training.gpu_memory_bytes = lambda: 80 << 30
    init = PartialState.__init__

    def init_with_gpus(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init_with_gpus  # type: ignore[method-assign]
    CPUOffloadPolicy.__init__.__defaults__ = (False,)  # pin_memory


def _break_isolation() -> None:
    """As an attention that takes a flat row for one sample."""
    from transformers import AttentionInterface

    from codetune.model.attention import SEGMENTED, segmented_attention

    def unsegmented(*states: Any, segments: tuple[int, ...], **more: Any) -> Any:
        return segmented_attention(*states, segments=(sum(segments),), **more)

    AttentionInterface.register(SEGMENTED, unsegmented)


def _print_loaded_weights() -> None:
    import codetune.training.build_model as base

    load = base.load_model

    def load_and_print(*arguments: Any) -> Any:
        network = load(*arguments)
        count = sum(weights.numel() for weights in network.parameters())
        sys.stderr.write(f"process {os.environ['RANK']} has loaded {count} numbers\n")
        return network

    base.load_model = load_and_print


if __name__ == "__main__":
    _run_rank()
