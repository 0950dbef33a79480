"""Trainings in two processes, as the command runs them: the same as in one, continued after any end, never left
hanging."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codetune.launch.node_monitor import SECONDS_TO_CONFIRM
from tests import pipeline
from tests.forks import Forked, Forks, slow
from tests.small_world import await_end, children, context_of, make_small_world
from tests.training.runs import metrics, selected_run, setting_flags, stopped_at

TRAINING = """
train: {max_length: 256, epochs: 8, global_batch_size: 5, per_device_batch_size: 2, warmup_steps: 0,
        learning_rate: 1e-3, gradient_checkpointing: false, logging_steps: 1,
        save_steps: 4, save_minutes: null, keep_checkpoints: 99}
"""
# 12 rows make 3 steps of 5, 5 and 2 rows: in the last one, each of two processes has one row.
STEPS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    project = make_small_world(directory, 30)
    lines = project.read_text().splitlines(keepends=True)
    begin = next(number for number, line in enumerate(lines) if line.startswith("train:"))
    project.write_text("".join([*lines[:begin], *lines[begin + 2 :]]) + TRAINING)
    pipeline.select(context_of(project, select__strategy="random"))
    return directory


@pytest.fixture(scope="module")
def alone(world: Path) -> Path:
    run = selected_run(world, "alone")
    train_here(world, run.name)
    return run


@pytest.fixture(scope="module")
def torchrun(world: Path) -> subprocess.CompletedProcess[str]:
    """A training in two ranks of the user's own launcher."""
    run = selected_run(world, "together")
    arguments = ["--standalone", "--nproc-per-node", "2", "-m", "codetune", "train", *setting_flags(run.name), "--json"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=world,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def together(world: Path, torchrun: subprocess.CompletedProcess[str]) -> Path:
    assert torchrun.returncode == 0, torchrun.stderr
    return world / "runs/together"


def test_two_processes_learn_what_one_does(alone: Path, together: Path) -> None:
    agree(together, alone)
    found = [sum(line["samples_per_second"] * line["seconds"] for line in metrics(run)) for run in (alone, together)]
    assert found == pytest.approx([96, 96])  # every row once an epoch, whoever had it
    manifest = json.loads((together / "model.seal").read_text())
    assert (manifest["facts"]["processes"], manifest["facts"]["strategy"]) == (2, "ddp")
    assert manifest["facts"]["strategy_because"] == "there is no GPU"


def test_a_checkpoint_of_two_processes_is_continued_by_one(world: Path, together: Path) -> None:
    broken = stopped_at(4, together, "continued")
    train_here(world, broken.name)
    agree(broken, together)


def test_after_every_kind_of_end_it_is_the_unbroken_training(forks: Forks, world: Path, together: Path) -> None:
    """Asked to stop, all ranks write a checkpoint; the command or a worker killed, nobody is left behind."""
    run = selected_run(world, "broken")
    with running(forks, world, run.name, "launch.processes=2", "train.save_steps=99", environment=slow(0.5)) as command:
        await_lines(run, 2)
        workers = children(command.pid)
        command.send_signal(signal.SIGTERM)
        _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130, stderr
    assert stderr.count("Stops after this step, with a checkpoint.") == 1
    assert "Traceback" not in stderr
    await_end(workers)
    assert last_checkpoint(run) == len(metrics(run)) < STEPS

    with running(forks, world, run.name, "launch.processes=2", "train.save_steps=1", environment=slow(0.5)) as command:
        await_lines(run, len(metrics(run)) + 1)
        workers = children(command.pid)
        os.kill(workers[-1], signal.SIGKILL)
        began = time.monotonic()
        _, stderr = command.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert command.returncode == 1
    continued, error = without_progress(stderr).splitlines()
    assert continued.startswith("Continues from the checkpoint of step ")
    assert error.startswith("error: Process "), stderr
    assert f"(pid {workers[-1]}) was killed by SIGKILL" in stderr
    await_end(workers)

    with running(forks, world, run.name, "launch.processes=2", "train.save_steps=1", environment=slow(0.5)) as command:
        await_lines(run, last_checkpoint(run) + 1)
        workers = children(command.pid)
        command.kill()
        command.wait()
    await_end(workers)
    assert last_checkpoint(run) < STEPS

    with running(forks, world, run.name, "launch.processes=2") as command:
        _, stderr = command.communicate()
    assert command.returncode == 0, stderr
    agree(run, together, exact=True)


def test_ranks_of_the_users_own_launcher_take_part(
    torchrun: subprocess.CompletedProcess[str], together: Path, alone: Path
) -> None:
    assert json.loads(torchrun.stdout)["state"] == "done"  # printed by the first rank alone
    agree(together, alone)


def test_two_machines_train_as_one(forks: Forks, world: Path, alone: Path) -> None:
    run = selected_run(world, "machines")
    with two_machines(forks, world, run.name) as commands:
        outputs = [command.communicate(timeout=300) for command in commands]
        assert [command.returncode for command in commands] == [0, 0], outputs
    agree(run, alone)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_machine_that_dies_is_named_by_the_other(forks: Forks, world: Path, dead: int) -> None:
    run = selected_run(world, f"machine-{dead}-dies")
    with two_machines(forks, world, run.name, slow(0.5)) as commands:
        await_lines(run, 2)
        survivor = commands[1 - dead]
        workers = children(survivor.pid)
        commands[dead].kill()
        began = time.monotonic()
        _, stderr = survivor.communicate(timeout=60)
    assert time.monotonic() - began < SECONDS_TO_CONFIRM + 10
    assert survivor.returncode == 1
    assert without_progress(stderr).startswith(f"error: Machine {dead} of 2 ({socket.gethostname()}) "), stderr
    assert "Traceback" not in stderr
    await_end(workers)


@contextlib.contextmanager
def two_machines(
    forks: Forks, world: Path, name: str, environment: Mapping[str, str] | None = None
) -> Iterator[list[Forked]]:
    """The commands that a user starts on two machines; none of them outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = (name, "launch.processes=1", "launch.nodes=2")
    job = {**(environment or {}), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with contextlib.ExitStack() as both:
        yield [
            both.enter_context(running(forks, world, *settings, environment={**job, "NODE_RANK": str(node)}))
            for node in range(2)
        ]


def without_progress(stderr: str) -> str:
    """Where the machine is busy, the command tells every 30 seconds how far it is."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("training: "))


def train_here(world: Path, name: str) -> None:
    """In this one process."""
    flags = {"output_dir": f"runs/{name}", "select__strategy": "random", "launch__processes": 1}
    pipeline.train(context_of(world / "codetune.yaml", **flags))


@contextlib.contextmanager
def running(
    forks: Forks, world: Path, name: str, *settings: str, environment: Mapping[str, str] | None = None
) -> Iterator[Forked]:
    """The command under way, and gone when the block ends, whatever happened."""
    command = forks.start(world, environment or {}, "codetune", "train", *setting_flags(name, *settings))
    try:
        yield command
    finally:
        command.kill()
        command.wait()


def await_lines(run: Path, count: int) -> None:
    file, until = run / "train/metrics.jsonl", time.monotonic() + 300
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def last_checkpoint(run: Path) -> int:
    return max(
        int(manifest.parent.name.rpartition("-")[2]) for manifest in run.glob("train/checkpoint-*/codetune.json")
    )


def weights(run: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted((run / "model").glob("*.safetensors")):
        yield from sorted(load_file(file).items())


def agree(one: Path, other: Path, *, exact: bool = False) -> None:
    """Losses, gradients and weights: bit by bit, or but for the order of sums."""
    pairs = list(zip(metrics(one), metrics(other), strict=True))
    assert len(pairs) == STEPS
    for found, expected in pairs:
        assert found["step"] == expected["step"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=0 if exact else 1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0 if exact else 1e-4)
        assert found["learning_rate"] == pytest.approx(expected["learning_rate"])
        assert found["padding_rate"] == expected["padding_rate"]
    for (name, tensor), (same_name, same_tensor) in zip(weights(one), weights(other), strict=True):
        assert name == same_name
        if exact:
            assert torch.equal(tensor, same_tensor), name
        else:
            assert torch.allclose(tensor, same_tensor, atol=2e-5), name
