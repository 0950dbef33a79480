"""The loss on held-out rows while training: exact, the same in every layout, at no cost to the training, continued."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codetune.data.tokens import TrainingTokens, training_tokens
from codetune.errors import CodetuneError, DataError, StaleError
from codetune.model.load import load_model, load_tokenizer
from codetune.project.sections import Project
from codetune.records import Message
from codetune.training.checkpoint import sealed_checkpoints
from codetune.training.holdout import HoldoutHistory, RowLoss
from codetune.training.summary import TrainingSummary
from codetune.training.train import train
from tests.training.test_train import same
from tests.training.tiny import base_model, examples, metrics, project

HELD_OUT = examples(29)[20:]
LORA = {"method": "lora"}
# So large a rate that the loss rises again: the second step is the best, with adapters (and a smaller one) the fifth.
OVERFITTING = {
    "epochs": 3,
    "learning_rate": 0.5,
    "scheduler": "constant_with_warmup",
    "evaluate_steps": 1,
    "save_steps": 4,
    "keep_checkpoints": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


def run(settings: Project, base: Path, directory: Path, **options: Any) -> TrainingSummary:
    options = {"holdout": HELD_OUT, "notify": lambda *_: None, **options}
    return train(examples(20), settings, base, directory, directory / "saved", lambda _: None, **options)


def losses(directory: Path) -> dict[int, float]:
    return {line["step"]: line["holdout_loss"] for line in metrics(directory) if "holdout_loss" in line}


def without(directory: Path) -> list[dict[str, Any]]:
    """The lines of the logging steps, without held-out losses."""
    lines = [line for line in metrics(directory) if "loss" in line]
    return [{name: value for name, value in line.items() if name != "holdout_loss"} for line in lines]


def by_hand(model: Path, base: Path, settings: Project) -> float:
    """The mean over all learned tokens of all held-out rows, one row at a time, from the model's own full logits."""
    network, tokenizer = load_model(model, settings.model, "cpu"), load_tokenizer(base)
    found: list[torch.Tensor] = []
    for row in HELD_OUT:
        tokens = training_tokens(tokenizer, "deepseek", row, 128, "truncate", "all")
        assert isinstance(tokens, TrainingTokens)
        with torch.no_grad():
            logits = network(torch.tensor([tokens.ids])).logits[0].log_softmax(-1)
        found += [-logits[at - 1, tokens.ids[at]] for at in range(1, len(tokens.ids)) if tokens.learned[at]]
    return float(torch.stack(found).double().mean())


@pytest.fixture(scope="module")
def evaluated(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingSummary]:
    directory = tmp_path_factory.mktemp("evaluated")
    return directory, run(project(evaluate_steps=1, keep_best=None), base, directory)


def test_the_loss_is_that_of_each_row_alone(base: Path, evaluated: tuple[Path, TrainingSummary]) -> None:
    directory, summary = evaluated
    assert list(losses(directory)) == [1, 2, 3, 4, 5, 6]
    expected = by_hand(directory / "saved", base, project())
    assert losses(directory)[6] == pytest.approx(expected, rel=1e-6)
    assert summary.holdout is not None
    assert (summary.holdout.loss, summary.holdout.rows, summary.holdout.step) == (losses(directory)[6], 9, 6)


def test_evaluations_change_no_bit_of_the_training(
    base: Path, tmp_path: Path, evaluated: tuple[Path, TrainingSummary]
) -> None:
    assert run(project(), base, tmp_path, holdout=()).holdout is None
    assert without(evaluated[0]) == metrics(tmp_path)
    assert same(evaluated[0] / "saved", tmp_path / "saved")


def test_evaluations_leave_quantized_weights_as_they_are(base: Path, tmp_path: Path) -> None:
    for name, rows in (("evaluated", HELD_OUT), ("plain", ())):
        settings = project("bfloat16", method="qlora", evaluate_steps=1, keep_best=None, max_steps=3)
        run(settings, base, tmp_path / name, holdout=rows)
    assert without(tmp_path / "evaluated") == without(tmp_path / "plain")
    assert same(tmp_path / "evaluated/saved", tmp_path / "plain/saved")


@pytest.mark.parametrize(
    "layout",
    [
        {"pad_mode": "max_length"},
        {"pad_mode": "paper_pack"},
        {"per_device_batch_size": 3, "global_batch_size": 8},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_every_layout_has_the_same_loss(
    base: Path, tmp_path: Path, layout: dict[str, Any], evaluated: tuple[Path, TrainingSummary]
) -> None:
    run(project(evaluate_steps=1, keep_best=None, max_steps=2, **layout), base, tmp_path)
    first = {step: loss for step, loss in losses(evaluated[0]).items() if step <= 2}
    assert losses(tmp_path) == pytest.approx(first, rel=1e-5)


def test_held_out_rows_never_see_each_other_even_where_packed_samples_do(base: Path, tmp_path: Path) -> None:
    settings = project(pack_isolation=False, keep_best=None, max_steps=2, max_length=128)
    run(settings, base, tmp_path)
    assert losses(tmp_path)[2] == pytest.approx(by_hand(tmp_path / "saved", base, settings), rel=1e-6)


def test_without_evaluate_steps_the_loss_is_measured_after_each_epoch_and_at_the_end(
    base: Path, tmp_path: Path
) -> None:
    run(project(max_steps=5), base, tmp_path)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 5]  # a step that is not logged has a line of its own
    assert list(lines[1]) == ["step", "epoch", "holdout_loss"]
    assert list(losses(tmp_path)) == [3, 5]


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_a_continued_training_has_the_same_evaluations_and_keeps_the_same_weights(
    base: Path, tmp_path: Path, method: dict[str, str]
) -> None:
    changed = {"learning_rate": 0.05 if method else 0.5, "save_steps": 2, "keep_checkpoints": 9}
    settings = project(**{**OVERFITTING, **changed}, **method)
    whole = run(settings, base, tmp_path / "whole")
    assert whole.holdout is not None
    best = min(losses(tmp_path / "whole"), key=lambda step: losses(tmp_path / "whole")[step])
    assert best == whole.holdout.step < whole.steps == 9
    for stopped_at in (2, 6, 8):
        broken = tmp_path / f"stopped-{stopped_at}"
        for checkpoint in sealed_checkpoints(tmp_path / "whole"):
            if checkpoint.step <= stopped_at:
                shutil.copytree(checkpoint.path, broken / checkpoint.path.name)
        shutil.copy(tmp_path / "whole/metrics.jsonl", broken)
        assert run(settings, base, broken).holdout == whole.holdout
        assert metrics(broken) == metrics(tmp_path / "whole")
        assert same(broken / "saved", tmp_path / "whole/saved")


def test_the_weights_with_the_lowest_loss_are_kept_and_their_checkpoint_is_never_pruned(
    base: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    summary = run(project(**OVERFITTING), base, tmp_path, notify=lambda kind, text: said.append(text))
    assert summary.holdout is not None
    best = summary.holdout.step
    assert summary.holdout.loss == losses(tmp_path)[best] == min(losses(tmp_path).values())
    assert f"Keeps the weights of step {best}, where the held-out loss is lowest" in said
    kept = [checkpoint.step for checkpoint in sealed_checkpoints(tmp_path)]
    assert kept == [best, 8]
    weights = load_file(tmp_path / f"checkpoint-{best}/model.safetensors")
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    assert by_hand(tmp_path / "saved", base, project()) == pytest.approx(summary.holdout.loss, rel=1e-6)


def test_patience_ends_the_training_also_when_it_is_continued_at_its_end(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = project(**{**OVERFITTING, "save_steps": 1, "keep_checkpoints": 9}, patience=2)
    summary = run(settings, base, tmp_path / "whole", notify=lambda kind, text: said.append(text))
    assert summary.holdout is not None
    assert summary.holdout.stopped_early
    assert summary.steps == summary.holdout.step + 2 < 9
    assert any(text.startswith(f"Stops after step {summary.steps} of 9: 2 evaluations in a row") for text in said)
    shutil.copytree(tmp_path / "whole", tmp_path / "again", ignore=shutil.ignore_patterns("saved"))
    again = run(settings, base, tmp_path / "again")
    assert (again.steps, again.holdout) == (summary.steps, summary.holdout)
    assert metrics(tmp_path / "again") == metrics(tmp_path / "whole")
    assert same(tmp_path / "again/saved", tmp_path / "whole/saved")


def test_a_checkpoint_with_the_best_weights_that_was_removed_is_an_error(base: Path, tmp_path: Path) -> None:
    summary = run(project(**OVERFITTING), base, tmp_path)
    assert summary.holdout is not None
    shutil.rmtree(tmp_path / f"checkpoint-{summary.holdout.step}")
    with pytest.raises(StaleError, match=rf"checkpoint-{summary.holdout.step} is missing.* lowest held-out loss"):
        run(project(**OVERFITTING), base, tmp_path)


def test_other_held_out_rows_or_another_rule_are_another_training(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=2), base, tmp_path)
    with pytest.raises(StaleError, match="digest of the held-out rows"):
        run(project(save_steps=2), base, tmp_path, holdout=HELD_OUT[1:])
    with pytest.raises(StaleError, match=r"train.patience null then, 3 now"):
        run(project(save_steps=2, patience=3), base, tmp_path)


def test_without_held_out_rows_the_settings_about_them_change_nothing(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=2), base, tmp_path, holdout=())
    (checkpoint, *_) = sealed_checkpoints(tmp_path)
    assert not {"train.holdout", "train.keep_best", "train.patience"} & set(checkpoint.fingerprint)
    assert "holdout" not in json.loads((checkpoint.path / "codetune.json").read_text(encoding="utf-8"))["meter"]
    run(project(save_steps=2, keep_best=None), base, tmp_path, holdout=())


def test_held_out_rows_that_are_all_dropped_are_an_error(base: Path, tmp_path: Path) -> None:
    long = replace(HELD_OUT[0], messages=(Message("user", "Count."), Message("assistant", "1\n" * 200)))
    with pytest.raises(DataError, match=r"All 1 held-out rows are dropped \(longer than 128 tokens\)"):
        run(project(too_long="drop"), base, tmp_path, holdout=[long])


def test_a_loss_that_is_not_finite_is_an_error(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetune.training.trainer.row_losses", lambda *_: [RowLoss("a", float("nan"), 3)])
    with pytest.raises(CodetuneError, match=r"held-out rows is not a finite number after step 3 of 6"):
        run(project(), base, tmp_path)


def test_the_history_counts_evaluations_since_the_best_one() -> None:
    history = HoldoutHistory()
    for step, loss in enumerate([3.0, 2.0, 2.0, 2.5], start=1):
        history = history.plus(step, loss)
    assert history == HoldoutHistory(last_loss=2.5, best_loss=2.0, best_step=2, since_best=2)
    assert (history.is_exhausted(2), history.is_exhausted(3), history.is_exhausted(None)) == (True, False, False)
