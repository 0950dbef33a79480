"""Trainings of which no process has the whole model, FSDP2 and ZeRO-3, for real between CPUs: the same as one process
alone, continued bit by bit, and never loaded whole where a part is enough."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codetune.project.file import read_project
from codetune.stages.runner import open_context
from tests import pipeline
from tests.forks import Forks
from tests.small_world import context_of, make_small_world, task, write_rows
from tests.training.ranks_on_cpus import run_ranks
from tests.training.runs import metrics, selected_run, setting_flags, stopped_at
from tests.training.tiny import base_model

TRAINING = """
train: {max_length: 256, epochs: 2, global_batch_size: 5, per_device_batch_size: 2, warmup_steps: 0,
        learning_rate: 1e-3, gradient_checkpointing: true, logging_steps: 1, lora: {dropout: 0.0},
        save_steps: 2, save_minutes: null, keep_checkpoints: 99}
"""
STEPS = 6
HOLDOUT = (
    "train.holdout=6",
    "train.max_steps=2",
    "train.evaluate_steps=1",
    "train.learning_rate=0.5",
    "train.scheduler=constant",
)
BY_TASKS = (
    "train.keep_best=pass@1",
    "train.tasks=apart.jsonl",
    "train.max_steps=2",
    "train.evaluate_steps=1",
    "generate.prompt=completion",
    "generate.max_new_tokens=4",
)
# Method, strategy, and what moves to the memory of the CPU.
ZERO = [
    ("full", "zero1", "none"),
    ("full", "zero3", "none"),
    ("lora", "zero2", "optimizer"),
    ("lora", "zero3", "all"),
]
needs_zero = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is missing")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    project = make_small_world(directory, 30)
    text = re.sub(r"train: \{.*?\}\n", "", project.read_text(), flags=re.DOTALL)
    project.write_text(text + TRAINING)
    pipeline.select(context_of(project, select__strategy="random"))
    return directory


@pytest.fixture(scope="module")
def alone(world: Path) -> dict[str, Path]:
    """By method, what one process learns."""
    runs = {}
    for method in ("full", "lora"):
        runs[method] = selected_run(world, f"alone-{method}")
        flags = {"output_dir": f"runs/alone-{method}", "select__strategy": "random", "train__method": method}
        pipeline.train(context_of(world / "codetune.yaml", **flags))
    return runs


@pytest.fixture(scope="module")
def held_out(world: Path) -> Path:
    """What one process learns with held-out rows, at so large a rate that the first step is the best."""
    flags = {"output_dir": "runs/holdout", "select.strategy": "random"}
    context = open_context(read_project(world / "codetune.yaml", HOLDOUT, flags))
    pipeline.select(context)
    pipeline.train(context)
    return world / "runs/holdout"


@pytest.fixture(scope="module")
def by_tasks(world: Path) -> Path:
    """What one process learns and measures on three tasks, two of which are solved by their prompts."""
    tasks = [task(number, begun=number == 1) for number in range(3)]
    write_rows(world / "apart.jsonl", tasks)
    run = selected_run(world, "by-tasks")
    flags = {"output_dir": f"runs/{run.name}", "select.strategy": "random"}
    pipeline.train(open_context(read_project(world / "codetune.yaml", BY_TASKS, flags)))
    return run


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fsdp_learns_what_one_process_does_and_any_number_continues_it(
    forks: Forks, world: Path, method: str, alone: dict[str, Path]
) -> None:
    # Frozen weights and adapters besides in the memory of the CPU.
    offload = "all" if method == "lora" else "none"
    settings = (f"train.method={method}", "launch.strategy=fsdp", f"launch.offload={offload}")
    whole = selected_run(world, f"fsdp-{method}")
    stderr = train(forks, 2, whole, *settings)
    agree(whole, alone[method])
    assert strategy_of(whole) == "fsdp"
    # The first process reads the weights and hands them out (and makes a whole model at the end).
    assert set(loaded(stderr)) == {(0, count_numbers(world))}
    for count in (2, 3):
        broken = stopped_at(4, whole, f"{whole.name}-{count}")
        train(forks, count, broken, *settings)
        agree(broken, whole, exact=count == 2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", pytest.param("zero3", marks=needs_zero)])
def test_processes_share_the_held_out_rows_and_keep_the_best_weights(
    forks: Forks, world: Path, held_out: Path, strategy: str
) -> None:
    run = world / "runs" / f"holdout-{strategy}"
    flags = {"output_dir": f"runs/{run.name}", "select__strategy": "random", "train__holdout": 6}
    pipeline.select(context_of(world / "codetune.yaml", **flags))
    train(forks, 2, run, *HOLDOUT, f"launch.strategy={strategy}")
    found, expected = (
        [line["holdout_loss"] for line in metrics(path) if "holdout_loss" in line] for path in (run, held_out)
    )
    assert found[0] == pytest.approx(expected[0], rel=1e-5)  # after it the large rate leads them apart
    assert found[0] < found[1]
    (one, other) = (json.loads((path / "model.seal").read_text())["facts"]["holdout"] for path in (run, held_out))
    assert (one["step"], one["rows"], one["loss"]) == (1, 6, found[0])
    assert other["step"] == 1
    assert all(
        torch.allclose(weights(run)[name], tensor, rtol=0, atol=1e-2) for name, tensor in weights(held_out).items()
    )


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=needs_zero)])
def test_processes_share_the_tasks_that_choose_the_weights(
    forks: Forks, world: Path, by_tasks: Path, strategy: str
) -> None:
    run = selected_run(world, f"tasks-{strategy}")
    train(forks, 2, run, *BY_TASKS, f"launch.strategy={strategy}")
    agree(run, by_tasks, steps=2)
    assert [line["pass@1"] for line in metrics(run)] == [line["pass@1"] for line in metrics(by_tasks)] == [2 / 3] * 2
    (one, other) = (json.loads((path / "model.seal").read_text())["facts"]["tasks_apart"] for path in (run, by_tasks))
    assert one == other == {"tasks": 3, "pass_rate": 2 / 3, "step": 1, "stopped_early": False}


@needs_zero
@pytest.mark.parametrize(("method", "strategy", "offload"), ZERO)
def test_zero_learns_the_same_and_is_continued(
    forks: Forks, world: Path, method: str, strategy: str, offload: str, alone: dict[str, Path]
) -> None:
    settings = (f"train.method={method}", f"launch.strategy={strategy}", f"launch.offload={offload}")
    whole = selected_run(world, f"{strategy}-{method}")
    stderr = train(forks, 2, whole, *settings)
    agree(whole, alone[method])
    assert strategy_of(whole) == strategy
    # Of stage 3 no process ever has the whole model: it is cut while it is loaded.
    had = 0 if strategy == "zero3" else count_numbers(world)
    assert [numbers for rank, numbers in loaded(stderr) if rank == 1] == [had]
    broken = stopped_at(4, whole, f"{whole.name}-continued")
    train(forks, 2, broken, *settings)
    agree(broken, whole, exact=True)


@needs_zero
def test_a_zero_checkpoint_fits_only_as_many_processes(forks: Forks, world: Path) -> None:
    begun = selected_run(world, "other-count")
    settings = ("train.max_steps=1", "train.save_steps=1", "launch.strategy=zero2")
    train(forks, 2, begun, *settings)
    shutil.rmtree(begun / "model")
    (begun / "model.seal").unlink()
    other = run_ranks(forks, 3, world, "train", *setting_flags(begun.name, *settings))
    assert other.exit_statuses[0] == 2, other.stderr
    assert "launch.strategy 'zero2 in 2 processes' then, 'zero2 in 3 processes' now" in other.stderr


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero3", marks=needs_zero)])
@pytest.mark.parametrize("base", ["tied", "runs/alone-lora/model"])
def test_tied_embeddings_and_adapters_on_adapters_are_trained_in_shards_too(
    forks: Forks, world: Path, alone: dict[str, Path], base: str, strategy: str
) -> None:
    method = "full" if base == "tied" else "lora"
    settings = ("train.max_steps=2", f"train.method={method}", f"model.path={base}")
    if base == "tied" and not (world / base).exists():
        base_model(world / base, "gemma")
    expected = selected_run(world, f"expected-{method}-{strategy}")
    flags = {"output_dir": f"runs/{expected.name}", "select__strategy": "random", "train__max_steps": 2}
    pipeline.train(context_of(world / "codetune.yaml", **flags, train__method=method, model__path=base))
    run = selected_run(world, f"together-{method}-{strategy}")
    train(forks, 2, run, *settings, f"launch.strategy={strategy}")
    agree(run, expected, steps=2)


DFT, MUON = {"train.objective": "dft"}, {"train.optimizer": "muon"}
EIGHT_BITS = {"train.optimizer": "adamw_8bit"}
DORA = {"train.method": "lora", "train.lora.dora": True, "train.merge": True}


@pytest.mark.parametrize(
    ("settings", "strategy"),
    [
        (DFT, "ddp"),
        (DFT, "fsdp"),
        (MUON, "ddp"),
        (MUON, "fsdp"),
        (EIGHT_BITS, "ddp"),
        (DORA, "fsdp"),
        pytest.param(DORA, "zero3", marks=needs_zero),
    ],
    ids=str,
)
def test_objectives_optimizers_and_adapters_learn_the_same_in_two_processes(
    forks: Forks, world: Path, settings: dict[str, Any], strategy: str
) -> None:
    name = "-".join([*map(str, settings.values()), strategy])
    expected, run = (selected_run(world, f"{name}-{count}") for count in ("alone", "together"))
    flags = {"output_dir": f"runs/{expected.name}", "select.strategy": "random", "train.max_steps": 2}
    pipeline.train(open_context(read_project(world / "codetune.yaml", [], flags | settings)))
    train(
        forks,
        2,
        run,
        "train.max_steps=2",
        f"launch.strategy={strategy}",
        *(f"{key}={value}".lower() for key, value in settings.items()),
    )
    agree(run, expected, steps=2)


def test_muon_in_shards_is_continued_bit_by_bit(forks: Forks, world: Path) -> None:
    settings = ("train.optimizer=muon", "launch.strategy=fsdp", "train.max_steps=3")
    whole = selected_run(world, "muon-whole")
    train(forks, 2, whole, *settings)
    broken = stopped_at(2, whole, "muon-continued")
    train(forks, 2, broken, *settings)
    agree(broken, whole, exact=True, steps=3)


def test_one_process_of_a_launcher_is_one_process(forks: Forks, world: Path, alone: dict[str, Path]) -> None:
    run = selected_run(world, "launched")
    train(forks, 1, run)
    agree(run, alone["full"], exact=True)


def test_isolation_is_checked_where_no_process_has_the_model(forks: Forks, world: Path) -> None:
    run = selected_run(world, "leaking")
    ended = run_ranks(forks, 2, world, "train", *setting_flags(run.name, "launch.strategy=fsdp"), "--leaking")
    assert ended.exit_statuses[0] == 2, ended.stderr
    assert "Packed samples see each other in" in ended.stderr


def train(forks: Forks, count: int, run: Path, *settings: str) -> str:
    """Returns what the ranks print on standard error."""
    ended = run_ranks(forks, count, run.parents[1], "train", *setting_flags(run.name, *settings))
    assert ended.exit_statuses == [0] * count, ended.stderr
    return ended.stderr


def loaded(stderr: str) -> list[tuple[int, int]]:
    """Which process, and how many numbers it had of the model."""
    return [(int(rank), int(count)) for rank, count in re.findall(r"process (\d) has loaded (\d+) numbers", stderr)]


def count_numbers(world: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(world / "base/model.safetensors").values())


def strategy_of(run: Path) -> str:
    return str(json.loads((run / "model.seal").read_text())["facts"]["strategy"])


def agree(one: Path, other: Path, *, exact: bool = False, steps: int = STEPS) -> None:
    """Losses, gradients and weights: bit by bit, or but for the order of sums."""
    pairs = list(zip(metrics(one), metrics(other), strict=True))
    assert len(pairs) == steps
    for found, expected in pairs:
        assert found["loss"] == pytest.approx(expected["loss"], rel=0 if exact else 1e-6)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0 if exact else 1e-5)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=0 if exact else 1e-5) for name in first)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in (run / "model").glob("*.safetensors") for name, tensor in load_file(file).items()}
