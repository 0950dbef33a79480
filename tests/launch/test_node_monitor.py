"""Machines of one job that fail, fall silent or leave, as threads of one process over one store. Trainings on two
machines, of which one is killed, are in training/test_ranks.py."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from torch._C._distributed_c10d import HashStore, Store

from codetune.errors import CodetuneError, DataError
from codetune.launch import node_monitor
from codetune.launch.node_monitor import NodeMonitor
from codetune.records import Rank

HOST = socket.gethostname()


class BrokenStore(HashStore):
    """The store of a machine that has died, from the second heartbeat on."""

    def set(self, key: str, value: str) -> None:
        if value.startswith("2 "):
            raise RuntimeError("Connection reset by peer")
        super().set(key, value)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_monitor, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(node_monitor, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(node_monitor, "SILENCE_AFTER_ERROR_SECONDS", 0.4)
    monkeypatch.setattr(node_monitor, "SECONDS_TO_CONFIRM", 0.7)


Start = Callable[[int, Store], tuple[NodeMonitor, list[CodetuneError]]]


@pytest.fixture
def start() -> Iterator[Start]:
    monitors = []

    def begin(node: int, store: Store) -> tuple[NodeMonitor, list[CodetuneError]]:
        errors: list[CodetuneError] = []
        monitor = NodeMonitor(Rank(2 * node, 4, 0, 2), lambda: store, errors.append)
        monitor.start()
        monitors.append(monitor)
        return monitor, errors

    yield begin
    for monitor in monitors:
        monitor.stop()
    time.sleep(0.3)


def await_error(errors: list[CodetuneError]) -> str:
    until = time.monotonic() + 10
    while not errors:
        assert time.monotonic() < until
        time.sleep(0.02)
    return str(errors[0])


def test_a_machine_that_falls_silent_is_named_with_its_host(start: Start) -> None:
    store = HashStore()
    _, errors = start(0, store)
    other, _ = start(1, store)
    time.sleep(1.5)
    assert errors == []
    other.stop()  # as silent as one without power
    assert await_error(errors).startswith(f"Machine 1 of 2 ({HOST}) has been silent for 1 s")


def test_a_machine_that_dies_before_its_first_heartbeat_is_named(start: Start) -> None:
    _, errors = start(0, HashStore())
    assert await_error(errors).startswith("Machine 1 of 2 has been silent")


def test_the_machine_that_keeps_the_store_is_named_where_it_does_not_answer(start: Start) -> None:
    store = BrokenStore()
    store.set("heartbeat-0", "1 first-host")
    _, errors = start(1, store)
    assert await_error(errors).startswith("Machine 0 of 2 (first-host) cannot be reached")


def test_a_machine_that_fails_tells_the_others_why(start: Start) -> None:
    store = HashStore()
    _, errors = start(0, store)
    other, _ = start(1, store)
    with pytest.raises(DataError), other.guard():
        raise DataError("rows.jsonl:3 is bad")
    assert await_error(errors) == f"Machine 1 of 2 ({HOST}) failed: rows.jsonl:3 is bad"


def test_an_error_of_torch_waits_until_the_dead_machine_is_known(start: Start) -> None:
    store = HashStore()
    monitor, errors = start(0, store)
    other, _ = start(1, store)
    time.sleep(0.3)
    other.stop()
    began = time.monotonic()
    with pytest.raises(RuntimeError), monitor.guard():
        raise RuntimeError("Connection closed by peer")
    assert errors  # and `on_lost` ends a process that is not a test
    assert time.monotonic() - began < 2


def test_a_machine_may_leave_when_the_work_is_done(start: Start) -> None:
    store = HashStore()
    monitor, errors = start(0, store)
    other, _ = start(1, store)
    time.sleep(0.3)
    monitor.stop()
    other.stop()
    time.sleep(1.5)
    assert errors == []


def test_one_machine_watches_nobody() -> None:
    def connect() -> Store:
        raise AssertionError

    monitor = NodeMonitor(Rank(0, 2, 0, 2), connect, lambda error: None)
    monitor.start()
    with pytest.raises(RuntimeError), monitor.guard():
        raise RuntimeError("at once")
