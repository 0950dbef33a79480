"""Every setting of the project reaches the Trainer, and none of the Trainer's own habits is left on."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.project.sections import Training
from codetune.training.arguments import training_arguments

SETTINGS = Training(
    learning_rate=3e-4, scheduler="linear", warmup_steps=7, weight_decay=0.1, max_grad_norm=0.5, optimizer="adafactor"
)


def test_settings_are_handed_on(tmp_path: Path) -> None:
    arguments = training_arguments(SETTINGS, "bfloat16", 30, 5, tmp_path, "cpu", {})
    assert (arguments.learning_rate, arguments.lr_scheduler_type.value, arguments.warmup_steps) == (3e-4, "linear", 7)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.optim.value) == (0.1, 0.5, "adafactor")
    assert (arguments.max_steps, arguments.seed, arguments.bf16, arguments.fp16) == (30, 5, True, False)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "adafactor"])
def test_every_scheduler_and_optimizer_of_the_project_is_known(tmp_path: Path, scheduler: str, optimizer: str) -> None:
    settings = Training(scheduler=scheduler, optimizer=optimizer)
    assert training_arguments(settings, "float32", 1, 1, tmp_path, "cpu", {}).device.type == "cpu"


def test_the_trainer_itself_neither_saves_nor_reports_nor_splits_batches(tmp_path: Path) -> None:
    arguments = training_arguments(SETTINGS, "float32", 30, 5, tmp_path, "cpu", {})
    assert arguments.save_strategy == "no"
    assert arguments.logging_strategy == "no"
    assert arguments.report_to == []
    assert arguments.disable_tqdm
    assert arguments.n_gpu <= 1
    assert arguments.gradient_accumulation_steps == 1
