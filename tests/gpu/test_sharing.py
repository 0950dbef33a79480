"""A training that is shared by FSDP2 or ZeRO, with one process on one GPU: in force, exact, continued, saved whole."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.small_world import make_small_world, run_codetune

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
needs_zero = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
STEPS = 9


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    make_small_world(directory, 30)
    return directory


def train(world: Path, name: str, *settings: str) -> Path:
    flags = [f"output_dir=runs/{name}", "select.strategy=random", "train.epochs=3", "train.save_steps=1"]
    flags += ["train.keep_checkpoints=99", "launch.processes=1", *settings]
    said = [word for setting in flags for word in ("--set", setting)]
    for stage in ("select", "train"):
        done = run_codetune(stage, *said, cwd=world, timeout=600)
        assert done.returncode == 0, done.stderr
    return world / "runs" / name


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in (run / "model").glob("*.safetensors") for name, tensor in load_file(file).items()}


def agree(one: Path, other: Path, tolerance: float) -> None:
    pairs = list(zip(metrics(one), metrics(other), strict=True))
    assert len(pairs) == STEPS
    for found, expected in pairs:
        assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=10 * tolerance)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=10 * tolerance) for name in first)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("strategy", "offload"),
    [
        ("fsdp", "none"),
        ("fsdp", "all"),
        pytest.param("zero2", "none", marks=needs_zero),
        pytest.param("zero2", "optimizer", marks=needs_zero),
        pytest.param("zero3", "none", marks=needs_zero),
        pytest.param("zero3", "all", marks=needs_zero),
    ],
)
def test_a_shared_training_learns_what_a_plain_one_does(world: Path, method: str, strategy: str, offload: str) -> None:
    exact = ("model.dtype=float32", "train.tf32=false", "train.lora.dropout=0.0", f"train.method={method}")
    plain = world / "runs" / f"plain-{method}"
    if not plain.exists():
        train(world, plain.name, *exact)
    shared = (f"launch.strategy={strategy}", f"launch.offload={offload}")
    run = train(world, f"{strategy}-{offload}-{method}", *exact, *shared)
    assert json.loads((run / "model.seal").read_text())["facts"]["strategy"] == strategy
    agree(run, plain, 1e-5)


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero3", marks=needs_zero)])
def test_a_continued_shared_training_is_the_unbroken_one(world: Path, strategy: str) -> None:
    settings = ("model.dtype=float32", f"launch.strategy={strategy}")
    whole = train(world, f"whole-{strategy}", *settings)
    for step in (2, 3, 5):
        name = f"broken-{strategy}-{step}"
        broken = world / "runs" / name / "train"
        broken.mkdir(parents=True)
        shutil.copytree(whole / f"train/checkpoint-{step}", broken / f"checkpoint-{step}")
        for file in ("metrics.jsonl", "recipe.json"):
            shutil.copy(whole / "train" / file, broken)
        shutil.copy(whole / "project.json", broken.parent)
        agree(train(world, name, *settings), whole, 1e-6)


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero2", marks=needs_zero)])
def test_bfloat16_stays_close_to_float32(world: Path, strategy: str) -> None:
    settings = ("train.max_grad_norm=1000.0", f"launch.strategy={strategy}")
    exact = train(world, f"exact-{strategy}", "model.dtype=float32", *settings)
    rounded = train(world, f"rounded-{strategy}", "model.dtype=bfloat16", *settings)
    for found, expected in zip(metrics(rounded), metrics(exact), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert {tensor.dtype for tensor in weights(rounded).values()} == {torch.bfloat16}
