"""Unusual settings are told before the first step, each with what is usual."""

from __future__ import annotations

import re
from typing import Any

import pytest

from codetune.project.sections import LoraSettings, Training
from codetune.training.plausibility import LostRows, TrainingSize, implausible_settings, lost_rows

USUAL = TrainingSize(rows=1000, step_samples=64, steps=48, epoch_steps=16, width=2048)
# 9 rows, one step of at most 64 of them
SMALL = TrainingSize(rows=9, step_samples=64, steps=1, epoch_steps=1, width=32)
SHORT = TrainingSize(rows=9, step_samples=8, steps=3, epoch_steps=1, width=32)


@pytest.mark.parametrize(
    ("dropped", "truncated", "told"),
    [
        (
            {"longer than 9 tokens": 6},
            0,
            r"train drops 6 of 100 rows \(6 %\): 6 longer than 9 tokens\. Raise train",
        ),
        ({"a template refuses it": 60}, 0, r"train drops 60 .*Set a model.chat_format that writes these rows$"),
        ({}, 21, r"21 of 100 rows are longer than 2,048 tokens: they lose their end"),
        ({"a template refuses it": 5}, 20, None),
    ],
)
def test_many_lost_rows_are_told(dropped: dict[str, int], truncated: int, told: str | None) -> None:
    found = lost_rows(Training(), LostRows(100, dropped, truncated))
    assert len(found) == (told is not None)
    assert all(re.search(told or "", doubt) for doubt in found)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_usual_settings_are_not_doubted(method: str) -> None:
    assert implausible_settings(Training(method=method), USUAL) == []


@pytest.mark.parametrize(
    ("settings", "size", "told"),
    [
        ({"epochs": 1}, SMALL, "warmup_steps is 15, and the training has 1 step: its learning rate is 0, so nothing"),
        ({"epochs": 1}, SMALL, "takes 64 samples, and there are 9 rows: each epoch is one step."),
        (
            {},
            SHORT,
            "has 3 steps: its learning rate never gets above 13 % of train.learning_rate. A warm-up is",
        ),
        ({"learning_rate": 500.0}, USUAL, "learning_rate is 500. The usual range is 1e-6 to 1e-4, for all weights"),
        (
            {"learning_rate": 1e-9, "method": "lora"},
            USUAL,
            "learning_rate is 1e-09. The usual range is 1e-5 to 1e-3,",
        ),
        ({"save_steps": 49}, USUAL, "save_steps is 49, and the training has 48 steps: only train.save_minutes writes"),
        ({"save_steps": 49, "save_minutes": None}, USUAL, "48 steps: there are no checkpoints"),
        ({"max_steps": 100}, USUAL, "max_steps is 100, and train.epochs: 3 ends after 48 steps"),
        ({"max_steps": 9, "epochs": 1}, SHORT, "ends after 1 step. Raise"),
        ({"method": "lora", "lora": LoraSettings(r=64)}, SHORT, "lora.r is 64, and the model is 32 wide"),
    ],
    ids=str,
)
def test_a_setting_that_is_hardly_meant_is_told(settings: dict[str, Any], size: TrainingSize, told: str) -> None:
    doubts = implausible_settings(Training(**settings), size)
    assert [doubt for doubt in doubts if told in doubt]


def test_a_constant_learning_rate_has_no_warm_up() -> None:
    assert not [doubt for doubt in implausible_settings(Training(scheduler="constant"), SHORT) if "warmup" in doubt]
