"""Runs `codetune` in several processes, told what torchrun tells its own: all are forks of one that has loaded the
libraries already, for that takes longer than the trainings.

Also lets FSDP2 work between CPUs, as torch can and accelerate alone refuses, and keeps an eye on what each process
loads of the model. `Ranks` starts and asks the one that forks."""

from __future__ import annotations

import contextlib
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
class Ended:
    statuses: list[int]  # by rank
    told: str  # what all of them said on standard error


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

    def run(self, count: int, cwd: Path, *arguments: str) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([count, str(cwd), arguments]) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed speaks when it is loaded
    _load_libraries()
    for line in sys.stdin:
        answers.write(json.dumps(_run(*json.loads(line))) + "\n")
        answers.flush()


def _load_libraries() -> None:
    from codetune.launch.environment import prepare_process

    prepare_process()
    import transformers.models.llama.modeling_llama  # noqa: F401

    import codetune.training.train  # noqa: F401

    with contextlib.suppress(ImportError):
        import deepspeed  # noqa: F401


def _run(count: int, cwd: str, arguments: Sequence[str]) -> tuple[list[int], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as told:
        ranks = []
        for rank in range(count):
            ranks.append(os.fork())
            if ranks[-1] == 0:
                places = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in {**places, **meeting}.items()})
                os.chdir(cwd)
                os.dup2(told.fileno(), 1)
                os.dup2(told.fileno(), 2)
                _be_a_rank(arguments)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        told.seek(0)
        return statuses, told.read().decode()


def _be_a_rank(arguments: Sequence[str]) -> None:
    from codetune.main import main

    sys.argv = ["codetune", *(word for word in arguments if word != LEAKING)]
    status: Any = 1
    try:
        if LEAKING in arguments:
            _let_samples_see_each_other()
        if "launch.strategy=fsdp" in arguments:
            _take_cpus_for_gpus()
        _tell_what_is_loaded()
        main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.stderr.flush()
        os._exit(status or 0)


def _take_cpus_for_gpus() -> None:
    """What codetune and accelerate look at before they believe that FSDP can work; and no memory of the CPU can be
    pinned for a GPU that is not there."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy

    import codetune.training.train as training

    training.gpu_memory_bytes = lambda: 80 << 30
    init = PartialState.__init__

    def told_of_gpus(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = told_of_gpus  # type: ignore[method-assign]
    CPUOffloadPolicy.__init__.__defaults__ = (False,)  # pin_memory


def _let_samples_see_each_other() -> None:
    """As an attention does that takes a flat row for one sample."""
    from transformers import AttentionInterface

    from codetune.model.attention import SEGMENTED, segmented_attention

    def blind(*states: Any, segments: tuple[int, ...], **more: Any) -> Any:
        return segmented_attention(*states, segments=(sum(segments),), **more)

    AttentionInterface.register(SEGMENTED, blind)


def _tell_what_is_loaded() -> None:
    import codetune.training.build_model as base

    load = base.load_model

    def telling(*arguments: Any) -> Any:
        network = load(*arguments)
        count = sum(weights.numel() for weights in network.parameters())
        sys.stderr.write(f"process {os.environ['RANK']} has loaded {count} numbers\n")
        return network

    base.load_model = telling


if __name__ == "__main__":
    _serve()
