"""The processes that share one network, in a training or where no GPU holds it whole: how they meet, and the few things
they tell each other beside gradients and activations.

All of it is torch.distributed's: gloo between CPUs and for what is said here, nccl between GPUs."""

from __future__ import annotations

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
from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from codetune.errors import CodetuneError
from codetune.records import ALONE, Rank

T = TypeVar("T")
# Ranks wait for each other while one of them writes a large checkpoint, or scores more rows than another. One that has
# died is noticed by its command, or its connection closes: no clock is needed for that.
PATIENCE = timedelta(hours=6)
PATIENCE_TO_MEET = timedelta(minutes=30)  # the first one reads its weights through before it comes


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes as one of them sees them. Alone, everything said is heard by itself."""

    place: Rank

    @property
    def count(self) -> int:
        return self.place.world_size

    @property
    def is_first(self) -> bool:
        return self.place.rank == 0

    def sums(self, amounts: Sequence[float]) -> list[float]:
        """Of each amount over all processes, in double precision."""
        return self._reduced(amounts, distributed.ReduceOp.SUM)

    def most(self, amounts: Sequence[float]) -> list[float]:
        """The largest of each amount; of something said, whether any process says so."""
        return self._reduced(amounts, distributed.ReduceOp.MAX)

    def least(self, amount: float) -> float:
        """The smallest over all processes."""
        return -self.most([-amount])[0]

    def as_first(self, told: torch.Tensor) -> torch.Tensor:
        """The first one's tensor, also in the others: what they do next follows from it."""
        if self.count > 1:
            distributed.broadcast(told, 0)
        return told

    def wait(self) -> None:
        """Until all have come here."""
        self.most([0.0])

    def _reduced(self, amounts: Sequence[float], how: distributed.ReduceOp.RedOpType) -> list[float]:
        told = torch.tensor(list(amounts), dtype=torch.float64)  # on the CPU: it goes through gloo
        if self.count > 1:
            distributed.all_reduce(told, op=how)
        return [float(amount) for amount in told]


SOLO = ProcessGroup(ALONE)


@contextmanager
def group(place: Rank, meeting: Callable[[], Store] | None) -> Iterator[ProcessGroup]:
    """Joins the others that meet there, and leaves when the block ends well. (When it ends ill, the process ends: to
    take leave of others who are not there would take for ever.)"""
    if meeting is None:
        yield SOLO
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=meeting(), rank=place.rank, world_size=place.world_size, timeout=PATIENCE
    )
    together = ProcessGroup(place)
    yield together
    together.wait()
    distributed.destroy_process_group()


def meet() -> Store:
    """Where a launcher has told all of them to meet (MASTER_ADDR and MASTER_PORT)."""
    try:
        store: Store = listening(lambda: next(rendezvous("env://", timeout=PATIENCE_TO_MEET))[0])
    except distributed.DistError as why:
        raise CodetuneError(
            f"The first process was not met in {PATIENCE_TO_MEET.seconds // 60} minutes "
            f"({str(why).partition(chr(10))[0]}). Expected: the same command on every machine, begun at about the same "
            "time. Look what the first one says, and at MASTER_ADDR and MASTER_PORT"
        ) from why
    store.set_timeout(PATIENCE)
    return store


def listening(wait: Callable[[], T]) -> T:
    """What `wait` gives. Torch waits for others without a look at signals: so it waits in a thread, and this one hears
    them."""
    waiting = ThreadPoolExecutor(1).submit(wait)
    while not waiting.done():
        time.sleep(0.05)
    return waiting.result()


def apart(store: Store, name: str) -> Store:
    """The same store for a group of its own: what an earlier one has left there would mislead it."""
    return PrefixStore(name, store)


def meet_in(file: Path, count: int) -> Store:
    """Processes of one machine: in a file, so that no port is needed that somebody else may take meanwhile."""
    store = FileStore(str(file), count)
    store.set_timeout(PATIENCE)
    return store
