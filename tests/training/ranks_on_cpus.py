"""Runs `codetune` in several processes with the environment of torchrun: all are forks of one process that has imported
the libraries, because the imports take longer than the trainings.

Also makes FSDP2 work between CPUs, which torch can do and only accelerate refuses, and prints how much of the model
each process loads. `Ranks` starts the process that forks, and sends it commands."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAKING = "--leaking"  # of these tests alone
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class RanksResult:
    exit_statuses: list[int]  # by rank
    stderr: str  # of all ranks


class Ranks:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.training.ranks_on_cpus"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, count: int, cwd: Path, *arguments: str) -> RanksResult:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([count, str(cwd), arguments]) + "\n")
        self._process.stdin.flush()
        return RanksResult(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed prints while it is imported
    _load_libraries()
    # A collection in a fork would write to, and so copy, every page that holds an object: 2 s each.
    gc.freeze()
    for line in sys.stdin:
        answers.write(json.dumps(_run(*json.loads(line))) + "\n")
        answers.flush()


def _load_libraries() -> None:
    from codetune.launch.environment import prepare_process

    prepare_process()
    import transformers.models.llama.modeling_llama  # noqa: F401

    import codetune.cli
    import codetune.render
    import codetune.training.train  # noqa: F401

    with contextlib.suppress(ImportError):
        import deepspeed.ops.op_builder.all_ops
        import deepspeed.runtime.superoffload.superoffload_stage3  # noqa: F401


def _run(count: int, cwd: str, arguments: Sequence[str]) -> tuple[list[int], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as output:
        ranks = []
        for rank in range(count):
            ranks.append(os.fork())
            if ranks[-1] == 0:
                rank_variables = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
                rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in {**rank_variables, **rendezvous}.items()})
                os.chdir(cwd)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                _run_rank(arguments)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        output.seek(0)
        return statuses, output.read().decode()


def _run_rank(arguments: Sequence[str]) -> None:
    from codetune.main import main

    sys.argv = ["codetune", *(word for word in arguments if word != LEAKING)]
    status: Any = 1
    try:
        if LEAKING in arguments:
            _break_isolation()
        if "launch.strategy=fsdp" in arguments:
            _treat_cpus_as_gpus()
        _print_loaded_weights()
        main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.stderr.flush()
        os._exit(status or 0)


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
    _serve()
