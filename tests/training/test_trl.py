"""TRL's SFTTrainer beside codetune's: the same rows, padded, in the same steps have the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM

from codetune.data.tokens import TrainingTokens, training_tokens
from codetune.model.load import load_tokenizer
from codetune.training.batch_sampler import StepSampler
from tests.training.tiny import base_model, examples, metrics, project, run

STEPS, SAMPLES = 10, 8  # of a step
SETTINGS = {"epochs": 4, "max_steps": STEPS, "logging_steps": 1, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


@pytest.mark.filterwarnings("ignore")  # of trl
@pytest.mark.parametrize("objective", ["nll", "dft"])
def test_trl_has_the_same_losses_in_every_step(base: Path, tmp_path: Path, objective: str) -> None:
    settings = project(pad_mode="dynamic_pad", objective=objective, **SETTINGS)
    run(settings, base, tmp_path / "codetune", rows=24)
    expected = [line["loss"] for line in metrics(tmp_path / "codetune")]
    assert trl_losses(base, tmp_path / "trl", objective) == pytest.approx(expected, rel=1e-4)
    assert abs(expected[-1] - expected[0]) > 0.1 * expected[0]


def trl_losses(base: Path, directory: Path, objective: str) -> list[float]:
    trl = pytest.importorskip("trl")
    losses: list[float] = []

    class Recorded(trl.SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *inputs: Any, **named: Any) -> Any:
            losses.append(float(loss := super().training_step(*inputs, **named)))
            return loss

    settings = project(**SETTINGS).train
    Recorded(
        AutoModelForCausalLM.from_pretrained(base),
        args=trl.SFTConfig(
            output_dir=str(directory),
            loss_type=objective,
            completion_only_loss=True,
            max_length=None,
            per_device_train_batch_size=SAMPLES // 2,
            gradient_accumulation_steps=2,
            max_steps=STEPS,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=settings.warmup_steps,
            max_grad_norm=settings.max_grad_norm,
            weight_decay=settings.weight_decay,
            optim=settings.optimizer,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows_in_order(base),
        processing_class=load_tokenizer(base),
    ).train()
    return [sum(losses[step : step + 2]) for step in range(0, len(losses), 2)]


def rows_in_order(base: Path) -> Dataset:
    """The rows as codetune draws them for each step, as tokens with the learned ones marked."""
    tokenizer, sampler, rows = load_tokenizer(base), StepSampler(24, SAMPLES, project().seed), []
    tokens = [training_tokens(tokenizer, "deepseek", row, 128, "truncate", "all") for row in examples(24)]
    for epoch in range(SETTINGS["epochs"]):  # type: ignore[call-overload]
        sampler.set_epoch(epoch)
        rows += [tokens[row] for step in sampler for row in step]
    return Dataset.from_list(
        [
            {"input_ids": list(row.ids), "completion_mask": [int(learned) for learned in row.learned]}
            for row in rows
            if isinstance(row, TrainingTokens)
        ]
    )
