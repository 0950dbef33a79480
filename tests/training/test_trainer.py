"""Every setting of the project reaches the Trainer, and none of the Trainer's own habits is left on."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from transformers import TrainingArguments

from codetune.project.sections import Model, Optimizer, Precision, Project, Training
from codetune.training.build_model import BaseModel
from codetune.training.trainer import training_arguments

SETTINGS = Training(
    learning_rate=3e-4, scheduler="linear", warmup_steps=7, weight_decay=0.1, max_grad_norm=0.5, optimizer="adafactor"
)


def arguments_of(settings: Training, directory: Path, precision: Precision = "float32") -> TrainingArguments:
    project = Project(seed=5, model=Model(dtype=precision, chat_format="deepseek"), train=settings)
    return training_arguments(project, BaseModel(directory, precision, "alone"), 30, directory, "cpu")


def test_settings_are_handed_on(tmp_path: Path) -> None:
    arguments = arguments_of(SETTINGS, tmp_path, "bfloat16")
    assert (arguments.learning_rate, arguments.lr_scheduler_type.value, arguments.warmup_steps) == (3e-4, "linear", 7)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.optim.value) == (0.1, 0.5, "adafactor")
    assert (arguments.max_steps, arguments.seed, arguments.bf16, arguments.fp16) == (30, 5, True, False)


@pytest.mark.parametrize("scheduler", get_args(Training.model_fields["scheduler"].annotation))
@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_every_scheduler_and_optimizer_of_the_project_is_known(tmp_path: Path, scheduler: str, optimizer: str) -> None:
    assert arguments_of(Training(scheduler=scheduler, optimizer=optimizer), tmp_path).device.type == "cpu"


def test_the_trainer_itself_neither_saves_nor_reports_nor_splits_batches(tmp_path: Path) -> None:
    arguments = arguments_of(SETTINGS, tmp_path)
    assert arguments.save_strategy == "no"
    assert arguments.logging_strategy == "no"
    assert arguments.report_to == []
    assert arguments.disable_tqdm
    assert arguments.n_gpu <= 1
    assert arguments.gradient_accumulation_steps == 1
