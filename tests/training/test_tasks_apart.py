"""Trainings that keep the weights of the best pass@1: which step is kept, exact and continued as without tasks."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from codetune.errors import ProjectError, StaleError
from codetune.project.sections import Project, Training
from codetune.training.checkpoint import sealed_checkpoints
from codetune.training.holdout import HoldoutHistory
from codetune.training.summary import TrainingSummary
from codetune.training.tasks_apart import TaskMeasure
from codetune.training.train import train
from codetune.training.trainer import require_supported
from tests.training.test_train import same
from tests.training.tiny import base_model, examples, metrics, project

BY_TASKS = {"keep_best": "pass@1", "tasks": "tasks.jsonl", "evaluate_steps": 1, "save_steps": 2, "keep_checkpoints": 9}
RATES = (1, 3, 3, 2, 0, 1)  # of 4 tasks, after each step: the second step is the best, the third no better


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


class Answers:
    """In the place of benchmark tasks: generates for real, and passes as many tasks as it was told for this network."""

    def __init__(self, directory: Path, digest: str = "tasks") -> None:
        self.measure = TaskMeasure(digest, 4, self.judge)
        self.states: list[tuple[str, bool, object]] = []
        self._metrics = directory / "metrics.jsonl"

    def judge(self, network: PreTrainedModel) -> tuple[int, int]:
        config = network.generation_config
        assert config is not None
        attention = network.config._attn_implementation
        self.states.append((attention, any(part.training for part in network.modules()), config.eos_token_id))
        network.generate(torch.tensor([[3, 5, 7]]), max_new_tokens=2, do_sample=False)  # type: ignore[operator]
        return RATES[len(metrics(self._metrics.parent)) if self._metrics.exists() else 0], 4


def run(settings: Project, base: Path, directory: Path, **options: Any) -> TrainingSummary:
    answers = Answers(directory)
    options = {"tasks": answers.measure, "notify": lambda *_: None, **options}
    return train(examples(20), settings, base, directory, directory / "saved", lambda _: None, **options)


def by_tasks(**settings: Any) -> Project:
    return project(**{"logging_steps": 1, **BY_TASKS, **settings})


def rates(directory: Path) -> list[float]:
    return [line["pass@1"] for line in metrics(directory) if "pass@1" in line]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingSummary]:
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(by_tasks(), base, directory)


def test_the_weights_of_the_best_pass_rate_are_kept_and_of_equal_ones_the_earliest(
    whole: tuple[Path, TrainingSummary],
) -> None:
    directory, summary = whole
    assert rates(directory) == [rate / 4 for rate in RATES]
    assert summary.holdout is None
    assert summary.tasks_apart is not None
    assert (summary.tasks_apart.step, summary.tasks_apart.pass_rate, summary.tasks_apart.tasks) == (2, 0.75, 4)
    weights, saved = (load_file(directory / name / "model.safetensors") for name in ("checkpoint-2", "saved"))
    assert all(torch.equal(weights[name], saved[name]) for name in saved)


def test_tasks_change_no_bit_of_the_training(base: Path, tmp_path: Path, whole: tuple[Path, TrainingSummary]) -> None:
    run(by_tasks(keep_best=None, tasks=None), base, tmp_path, tasks=None)
    lines = [{name: value for name, value in line.items() if name != "pass@1"} for line in metrics(whole[0])]
    assert lines == metrics(tmp_path)
    assert same(whole[0] / "checkpoint-6", tmp_path / "checkpoint-6")


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_continued_training_keeps_the_weights_of_the_same_step(
    base: Path, tmp_path: Path, stopped_at: int, whole: tuple[Path, TrainingSummary]
) -> None:
    for checkpoint in sealed_checkpoints(whole[0]):
        if checkpoint.step <= stopped_at:
            shutil.copytree(checkpoint.path, tmp_path / checkpoint.path.name)
    shutil.copy(whole[0] / "metrics.jsonl", tmp_path)
    assert run(by_tasks(), base, tmp_path).tasks_apart == whole[1].tasks_apart
    assert metrics(tmp_path) == metrics(whole[0])
    assert same(tmp_path / "saved", whole[0] / "saved")


def test_a_continued_training_with_patience_merges_the_adapters_of_the_same_step(base: Path, tmp_path: Path) -> None:
    settings = by_tasks(method="lora", merge=True, patience=2, save_steps=3)
    summary = run(settings, base, tmp_path / "whole")
    assert summary.tasks_apart is not None
    assert (summary.steps, summary.tasks_apart.step) == (4, 2)
    kept, saved = (
        load_file(tmp_path / "whole" / name / "adapter_model.safetensors") for name in ("checkpoint-2", "saved/adapter")
    )
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    for checkpoint in sealed_checkpoints(tmp_path / "whole"):
        shutil.copytree(checkpoint.path, tmp_path / "broken" / checkpoint.path.name)
    shutil.copy(tmp_path / "whole/metrics.jsonl", tmp_path / "broken")
    assert run(settings, base, tmp_path / "broken").tasks_apart == summary.tasks_apart
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    assert same(tmp_path / "broken/saved", tmp_path / "whole/saved")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_tasks_are_judged_ends_after_them_with_a_checkpoint(
    base: Path, tmp_path: Path, number: signal.Signals, whole: tuple[Path, TrainingSummary]
) -> None:
    answers = Answers(tmp_path)

    def judge(network: PreTrainedModel) -> tuple[int, int]:
        if len(answers.states) == 2:
            signal.raise_signal(number)
        return answers.judge(network)

    with pytest.raises(KeyboardInterrupt):
        run(by_tasks(save_steps=None), base, tmp_path, tasks=TaskMeasure("tasks", 4, judge))
    assert [checkpoint.step for checkpoint in sealed_checkpoints(tmp_path)] == [1, 2, 3]
    assert run(by_tasks(save_steps=None), base, tmp_path).tasks_apart == whole[1].tasks_apart
    assert metrics(tmp_path) == metrics(whole[0])
    assert same(tmp_path / "saved", whole[0] / "saved")


@pytest.mark.parametrize("method", [{"dropout": 0.1}, {"pad_mode": "dynamic_pad"}, {"method": "qlora"}], ids=str)
def test_the_network_generates_as_it_will_when_it_is_finished_and_goes_on_as_before(
    base: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    method = {"method": "lora"} if "dropout" in method else method
    answers = Answers(tmp_path / "measured")
    run(by_tasks(max_steps=2, **method), base, tmp_path / "measured", tasks=answers.measure)
    run(by_tasks(max_steps=2, keep_best=None, tasks=None, **method), base, tmp_path / "plain", tasks=None)
    (state, again) = answers.states
    assert state == again
    assert state[0] == "sdpa"
    saved = next((tmp_path / "measured/saved").glob("generation_config.json")).read_text(encoding="utf-8")
    assert isinstance(state[2], list)
    assert all(str(token) in saved for token in state[2])
    found, expected = (metrics(tmp_path / name) for name in ("measured", "plain"))
    assert [line["loss"] for line in found] == [line["loss"] for line in expected]
    assert [line["grad_norm"] for line in found] == [line["grad_norm"] for line in expected]


def test_patience_counts_evaluations_without_a_higher_rate(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    summary = run(by_tasks(patience=2), base, tmp_path, notify=lambda kind, text: said.append(text))
    assert summary.tasks_apart is not None
    assert (summary.steps, summary.tasks_apart.step, summary.tasks_apart.stopped_early) == (4, 2, True)
    assert "Stops after step 4 of 6: 2 evaluations in a row brought no higher pass@1" in said[-2]
    assert said[-1] == "Keeps the weights of step 2, where pass@1 on train.tasks is highest"


def test_other_tasks_are_another_training(base: Path, tmp_path: Path) -> None:
    run(by_tasks(max_steps=2), base, tmp_path)
    with pytest.raises(StaleError, match="digest of the tasks 'tasks' then, 'others' now"):
        run(by_tasks(max_steps=2), base, tmp_path, tasks=Answers(tmp_path, "others").measure)


def test_with_held_out_rows_too_the_tasks_decide_and_both_are_reported() -> None:
    history = HoldoutHistory()
    for step, (loss, rate) in enumerate([(3.0, 0.5), (2.0, 0.25), (1.0, 0.5)], start=1):
        history = history.plus(step, loss, rate)
    assert history == HoldoutHistory(1.0, 3.0, 1, 2, 0.5, 0.5)


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_a_sharded_model_that_is_to_answer_tasks_is_refused(strategy: Any) -> None:
    settings = Project(train=Training(keep_best="pass@1", tasks="cruxeval"))
    with pytest.raises(ProjectError, match=rf"keep_best is pass@1, and launch.strategy {strategy}.*ddp or zero2"):
        require_supported(settings, "float32", strategy, "cpu")
    require_supported(settings, "float32", "zero2", "cpu")
