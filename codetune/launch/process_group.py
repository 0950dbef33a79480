"""The process group of one job: how its ranks find each other, and the reductions they need beside gradients.

Everything here is torch.distributed: gloo between CPUs and for these reductions, NCCL between GPUs; a store (key and
value, kept by one process or in a file) through which ranks find each other and exchange short texts."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as distributed
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from codetune.errors import CodetuneError, first_line
from codetune.launch.environment import store_address
from codetune.records import ALONE, Rank

T = TypeVar("T")
OpenStore = Callable[[], Store]
# Ranks wait for each other while one of them writes a large checkpoint, or scores more rows than another. A rank that
# died is noticed by its command or by `NodeMonitor`, so this limit is never what ends a run.
COLLECTIVE_TIMEOUT = timedelta(hours=6)
# The command of the first machine reads all weights (for their digest) before its ranks start.
RENDEZVOUS_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The ranks of a job as one of them, `member`, sees them. With one rank every reduction returns its input."""

    member: Rank

    @property
    def count(self) -> int:
        return self.member.world_size

    @property
    def is_first(self) -> bool:
        return self.member.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in double precision."""
        return self._all_reduce(values, distributed.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """The maximum of each value over all ranks; of booleans, whether any rank says true."""
        return self._all_reduce(values, distributed.ReduceOp.MAX)

    def min(self, value: float) -> float:
        """The minimum over all ranks."""
        return -self.max([-value])[0]

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Overwrites `tensor` with that of rank 0 (same shape and dtype in every rank), and returns it."""
        if self.count > 1:
            distributed.broadcast(tensor, 0)
        return tensor

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Overwrites `tensor` with its sum over all ranks, where it lies, and returns it."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks, in their order; every rank gets them."""
        content = text.encode()
        longest = int(self.max([len(content)])[0])
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        found = [torch.zeros_like(padded) for _ in range(self.count)]
        if self.count > 1:
            distributed.all_gather(found, padded)
        else:
            found = [padded]
        return [bytes(each.tolist()).rstrip(b"\0").decode() for each in found]

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        self.max([0.0])

    def _all_reduce(self, values: Sequence[float], operation: distributed.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(list(values), dtype=torch.float64)  # on the CPU, so it goes through gloo
        if self.count > 1:
            distributed.all_reduce(tensor, op=operation)
        return [float(value) for value in tensor]


SINGLE_PROCESS = ProcessGroup(ALONE)


@contextmanager
def join_process_group(member: Rank, open_store: OpenStore | None) -> Iterator[ProcessGroup]:
    """Joins the process group of the ranks that open the same store (None: there is one rank), and destroys it at the
    end. After an error the process must end: destroying the group would wait for ranks that are gone."""
    if open_store is None:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=open_store(), rank=member.rank, world_size=member.world_size, timeout=COLLECTIVE_TIMEOUT
    )
    group = ProcessGroup(member)
    yield group
    group.barrier()
    distributed.destroy_process_group()


def rendezvous_store(rank: Rank, patience: timedelta | None = None) -> Store:
    """The store at MASTER_ADDR and MASTER_PORT, which rank 0 or torchrun's agent keeps. Rank 0 waits for all ranks.

    Raises CodetuneError where rank 0 does not answer within RENDEZVOUS_TIMEOUT; in rank 0 where other ranks have not
    come within `patience` (None: as long), with their machines."""
    try:
        store = interruptible(lambda: connect_store(keeps_it=rank.rank == 0))
    except distributed.DistError as why:
        raise CodetuneError(
            f"Rank 0 did not answer within {RENDEZVOUS_TIMEOUT.total_seconds() / 60:g} minutes ({first_line(why)}). "
            "Expected: the same command on every machine, started at about the same time. Check the output of rank 0, "
            "and MASTER_ADDR and MASTER_PORT"
        ) from why
    store.set(f"host-{rank.rank}", socket.gethostname())
    if rank.rank == 0:
        _await_ranks(store, rank, patience or RENDEZVOUS_TIMEOUT)
    store.set_timeout(COLLECTIVE_TIMEOUT)
    return store


def connect_store(*, keeps_it: bool) -> Store:
    """A new connection to the store that all ranks open, which this process starts where it `keeps_it` and torchrun's
    agent does not. Each thread needs its own: a connection serves one blocking call at a time."""
    host, port, is_agents = store_address()
    return TCPStore(
        host,
        port,
        is_master=keeps_it and not is_agents,
        timeout=RENDEZVOUS_TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,
    )


def _await_ranks(store: Store, rank: Rank, patience: timedelta) -> None:
    hosts = [f"host-{other}" for other in range(rank.world_size)]
    try:
        interruptible(lambda: store.wait(hosts, patience))
    except distributed.DistError as why:
        absent = [other for other, key in enumerate(hosts) if not store.check([key])]
        nodes = sorted({other // rank.local_world_size for other in absent})
        present = sorted({store.get(key).decode() for other, key in enumerate(hosts) if other not in absent})
        raise CodetuneError(
            f"Ranks {_listed(absent)} of {rank.world_size} (machine {_listed(nodes)} of "
            f"{rank.world_size // rank.local_world_size}) did not connect within "
            f"{patience.total_seconds() / 60:g} minutes. Present: {', '.join(present)}. Expected: the same "
            "command on every machine, started at about the same time. Check the output of the absent machine, and "
            "that it reaches MASTER_ADDR and MASTER_PORT"
        ) from why


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def file_store(file: Path, count: int) -> Store:
    """A store in a file for `count` processes of one machine; it needs no port."""
    store = FileStore(str(file), count)
    store.set_timeout(COLLECTIVE_TIMEOUT)
    return store


def prefix_store(store: Store, prefix: str) -> Store:
    """The same store with keys of its own, so that a new process group does not read what an earlier one has left."""
    return PrefixStore(prefix, store)


def interruptible(wait: Callable[[], T]) -> T:
    """Returns what `wait` returns. Torch ignores signals while it waits, so `wait` runs in a thread, and this thread
    handles them."""
    waiting = ThreadPoolExecutor(1).submit(wait)
    while not waiting.done():
        time.sleep(0.05)
    return waiting.result()
