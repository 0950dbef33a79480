"""Notices that another machine of a job has died or failed, and says which one; gloo and NCCL say at most that a
connection closed.

Rank 0 of each machine writes a heartbeat into the store every few seconds, and every rank reads those of the others.
Does not watch the processes of its own machine; the command or the launcher does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from codetune.errors import CodetuneError, WorkerError, first_line
from codetune.records import Rank

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

OnLost = Callable[[CodetuneError], None]
HEARTBEAT_SECONDS = 2.0
SECONDS_TO_MEET = 0.2  # between heartbeats until the name of every machine is known
# A library can hold Python's lock for many seconds, in which no heartbeat is written; a false alarm ends a training.
SILENCE_SECONDS = 120.0
# Where a connection has closed as well, three heartbeats that did not come are enough.
SILENCE_AFTER_ERROR_SECONDS = 3 * HEARTBEAT_SECONDS
SECONDS_TO_CONFIRM = SILENCE_AFTER_ERROR_SECONDS + 2 * HEARTBEAT_SECONDS
_UNREACHABLE = float("-inf")


class NodeMonitor:
    """`on_lost` gets the error that names the first machine that died or failed; it must end the process, whose main
    thread may wait for that machine inside torch."""

    def __init__(self, rank: Rank, open_store: Callable[[], Store], on_lost: OnLost) -> None:
        self.node = rank.rank // rank.local_world_size
        self.count = rank.world_size // rank.local_world_size
        self._writes = rank.local_rank == 0
        self._open_store, self._on_lost = open_store, on_lost
        self._heartbeats: dict[int, str] = {}  # node -> "NUMBER HOST"
        self._changed_at: dict[int, float] = {}
        self._failures: dict[int, str] = {}
        self._own_failure = ""
        self._limit = SILENCE_SECONDS
        self._stopped, self._exchanged = threading.Event(), threading.Event()

    def start(self) -> None:
        """Does nothing where there is one machine."""
        if self.count > 1:
            if self.node == 0:  # which has waited for all of them
                self._changed_at = dict.fromkeys(range(1, self.count), time.monotonic())
            threading.Thread(target=self._exchange, daemon=True).start()
            threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Ends the watch: from here on another machine may leave."""
        self._stopped.set()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Tells the other machines why the block failed. Delays an error of torch until the monitor knows whether
        another machine is its cause."""
        try:
            yield
        except (RuntimeError, CodetuneError) as why:
            if self.count > 1:
                if isinstance(why, RuntimeError):
                    self._limit = SILENCE_AFTER_ERROR_SECONDS
                    time.sleep(SECONDS_TO_CONFIRM)
                self._own_failure = first_line(why)
                self._exchanged.clear()
                self._exchanged.wait(2 * HEARTBEAT_SECONDS)
            raise

    def _exchange(self) -> None:
        """Writes and reads heartbeats until the store does not answer. A thread of its own, because the store of a
        machine without power never answers."""
        number = 0
        try:
            store = self._open_store()
            while not self._stopped.is_set():
                number += 1
                self._write(store, number)
                for other in range(self.count):
                    if other != self.node:
                        self._read(store, other)
                self._exchanged.set()
                self._stopped.wait(HEARTBEAT_SECONDS if len(self._heartbeats) == self.count - 1 else SECONDS_TO_MEET)
        except RuntimeError:  # of torch: the connection to machine 0, which keeps the store, has closed
            if not self._stopped.wait(HEARTBEAT_SECONDS):  # machine 0 may have finished just before this one
                self._changed_at[0] = _UNREACHABLE

    def _write(self, store: Store, number: int) -> None:
        if self._writes:
            store.set(f"heartbeat-{self.node}", f"{number} {socket.gethostname()}")
        if self._own_failure:
            store.set(f"failure-{self.node}", self._own_failure)

    def _read(self, store: Store, other: int) -> None:
        if store.check([f"heartbeat-{other}"]):
            heartbeat = store.get(f"heartbeat-{other}").decode()
            if heartbeat != self._heartbeats.get(other):
                self._heartbeats[other], self._changed_at[other] = heartbeat, time.monotonic()
        if store.check([f"failure-{other}"]):
            self._failures[other] = store.get(f"failure-{other}").decode()

    def _watch(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS / 4):
            if (error := self._lost()) is not None:
                self._on_lost(error)
                return

    def _lost(self) -> CodetuneError | None:
        """The error of the first machine that failed or is silent; of machine 0, which keeps the store, where that does
        not answer."""
        for other, reason in sorted(self._failures.items()):
            return WorkerError(f"{self._name(other)} failed: {reason}")
        now = time.monotonic()
        for other, changed_at in sorted(self._changed_at.items()):
            if (silence := now - changed_at) > self._limit:
                how = "cannot be reached" if changed_at == _UNREACHABLE else f"has been silent for {silence:.0f} s"
                return WorkerError(
                    f"{self._name(other)} {how}, so the work ends on all machines. Expected: all of them to finish. "
                    "Nothing finished is lost: look at the output of that machine, fix the cause, and run the command "
                    "again on every machine"
                )
        return None

    def _name(self, node: int) -> str:
        host = self._heartbeats.get(node, "").partition(" ")[2]
        return f"Machine {node} of {self.count}" + (f" ({host})" if host else "")
