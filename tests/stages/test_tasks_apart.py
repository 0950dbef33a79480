"""A training that keeps the weights of the best pass@1: measured as the stages would, on tasks that nobody reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetune.benchmark.parts import part_of
from codetune.errors import UsageError
from codetune.run_status import run_status
from codetune.stages.benchmarks import open_benchmark, open_whole_benchmark, tasks_apart
from codetune.stages.evaluate import EVALUATE
from codetune.stages.model_ref import model_ref
from codetune.stages.stage import RunContext, StageRequest
from codetune.stages.status import stage_status
from codetune.stages.train import TRAIN
from codetune.workflow import evaluate_models
from tests import pipeline
from tests.small_world import context_of, make_small_world, task, write_rows

BY_TASKS = {
    "select__strategy": "random",
    "train__keep_best": "pass@1",
    "train__tasks": "apart.jsonl",
    "train__max_steps": 2,
    "train__evaluate_steps": 1,
    "generate__prompt": "completion",
    "generate__max_new_tokens": 4,
}


def world(directory: Path) -> Path:
    """The small world with four tasks apart; the first of them is the second of `tasks.jsonl` under another name."""
    project = make_small_world(directory, 30)
    own = [json.loads(line) for line in (directory / "tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    renamed = {**own[1], "task_id": "Apart/0"}
    tasks = [task(4, begun=True), task(2, begun=False), task(3, begun=False)]
    write_rows(directory / "apart.jsonl", [renamed, *tasks])
    return project


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    project = world(tmp_path_factory.mktemp("world"))
    context = context_of(project, **{**BY_TASKS, "train__tasks": str(project.parent / "apart.jsonl")})
    pipeline.select(context)
    pipeline.train(context)
    return context


def test_the_rate_is_what_the_stages_find_for_the_model_that_is_kept(trained: RunContext) -> None:
    facts = json.loads((trained.run.directory / "model.seal").read_text(encoding="utf-8"))["facts"]
    assert "holdout" not in facts
    other = context_of(trained.project.root / "codetune.yaml", output_dir="runs/other", generate__prompt="completion")
    (report,) = evaluate_models(other, open_benchmark(other, "apart.jsonl"), [str(trained.run.model)])
    assert report["pass_at_k"]["plus"]["pass@1"] == 0.5
    assert facts["tasks_apart"] == {"tasks": 4, "pass_rate": 0.5, "step": 1, "stopped_early": False}
    lines = (trained.run.train / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["pass@1"] for line in lines] == [0.5, 0.5]


def test_no_result_counts_the_tasks_that_chose_the_weights(trained: RunContext) -> None:
    tasks = open_benchmark(trained, "tasks.jsonl")
    for report in evaluate_models(trained, tasks, ["tuned", "base"]):
        assert (report["tasks"], report["tasks_in_benchmark"]) == (2, 3)
        assert set(report["verdicts"]) == {"Small/0", "Small/2"}
    with pytest.raises(UsageError, match=r"apart has no task that is not among those of train.tasks"):
        open_benchmark(trained, "apart.jsonl")


def test_the_card_tells_of_how_many_tasks_a_result_is_and_no_path(trained: RunContext) -> None:
    tasks = open_benchmark(trained, "tasks.jsonl")
    evaluate_models(trained, tasks, ["tuned", "base"])
    evaluate_models(trained, part_of(tasks, 1, ()), ["tuned"])
    card = (trained.run.model / "README.md").read_text(encoding="utf-8")
    assert "| tasks | 2 of 3 | plus | pass@1 |" in card
    assert "name: tasks (2 of 3 tasks, plus tests)" in card
    assert card.count("| plus |") == 1
    assert "on 4 tasks of apart.jsonl chose the weights of step 1" in card
    assert str(trained.project.root) not in card


def test_samples_of_a_file_for_these_tasks_are_left_out_too(trained: RunContext) -> None:
    good = [{"task_id": f"Small/{n}", "solution": f"def add_{n}(x):\n    return x + {n}\n"} for n in range(3)]
    write_rows(trained.project.root / "samples.jsonl", good)
    assert pipeline.sanitize_file(trained, trained.project.root / "samples.jsonl").rows == 2
    report = pipeline.evaluate_file(
        trained, open_benchmark(trained, "tasks.jsonl"), trained.project.root / "samples.jsonl"
    )
    assert (report["tasks"], report["pass_at_k"]["plus"]["pass@1"]) == (2, 1.0)


def test_the_status_knows_which_tasks_an_evaluation_counts(trained: RunContext) -> None:
    evaluate_models(trained, open_benchmark(trained, "tasks.jsonl"), ["tuned", "base"])
    done = {line.stage: line.state for line in run_status(trained)}
    assert done["tasks tuned"] == done["tasks base"] == done["train"] == "done"
    whole = context_of(trained.project.root / "codetune.yaml")
    base = stage_status(whole, EVALUATE, StageRequest(benchmark="tasks", label="base"))
    assert (base.state, "train.tasks keeps apart" in base.why) == ("stale", True)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"train__task_count": 2}, "train.task_count"),
        ({"generate__max_new_tokens": 5}, "generate.max_new_tokens"),
        (
            {"train__keep_best": "loss", "train__tasks": None, "train__evaluate_steps": None},
            "made of tasks as well, which the project no longer names",
        ),
    ],
    ids=str,
)
def test_a_model_is_stale_when_others_would_have_been_kept(
    trained: RunContext, changed: dict[str, Any], why: str
) -> None:
    other = context_of(trained.project.root / "codetune.yaml", **{**BY_TASKS, **changed})
    found = stage_status(other, TRAIN)
    assert (found.state, why in found.why) == ("stale", True), found.why


def test_a_model_whose_tasks_can_no_longer_be_read_is_stale(trained: RunContext) -> None:
    whole = (trained.project.root / "apart.jsonl").read_text(encoding="utf-8")
    (trained.project.root / "cut.jsonl").write_text(whole[:100], encoding="utf-8")
    cut = context_of(trained.project.root / "codetune.yaml", **{**BY_TASKS, "train__tasks": "cut.jsonl"})
    found = stage_status(cut, TRAIN)
    assert (found.state, "cannot be read" in found.why) == ("stale", True), found.why


def test_a_count_picks_the_same_tasks_whatever_the_seed_and_the_order_of_the_file(tmp_path: Path) -> None:
    project = world(tmp_path)
    picked = {
        frozenset(task.task_id for task in tasks_apart(context_of(project, **BY_TASKS, train__task_count=2, seed=seed)))
        for seed in (1, 2)
    }
    lines = (tmp_path / "apart.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "apart.jsonl").write_text("".join(lines[::-1]), encoding="utf-8")
    picked.add(frozenset(task.task_id for task in tasks_apart(context_of(project, **BY_TASKS, train__task_count=2))))
    assert len(picked) == 1
    with pytest.raises(UsageError, match=r"train.task_count is 5, and train.tasks has 4 tasks"):
        tasks_apart(context_of(project, **BY_TASKS, train__task_count=5))


def test_a_part_of_a_benchmark_chooses_and_the_rest_is_reported(tmp_path: Path) -> None:
    context = context_of(world(tmp_path), **{**BY_TASKS, "train__tasks": "tasks.jsonl", "train__task_count": 1})
    (apart,), reported = tasks_apart(context), open_benchmark(context, "tasks.jsonl")
    assert {apart.task_id, *(task.task_id for task in reported.problems)} == {f"Small/{n}" for n in range(3)}
    assert len(reported.problems) == 2
    assert len(open_whole_benchmark(context, "tasks.jsonl").problems) == 3


def test_the_tasks_are_among_those_that_no_row_may_hold(tmp_path: Path) -> None:
    project = world(tmp_path)
    flags = {**BY_TASKS, "select__decontaminate": "auto"}
    facts = pipeline.select(context_of(project, **flags)).facts
    assert facts["decontaminated"] == {"tasks.jsonl": 3, "apart.jsonl": 4}


def test_what_cannot_be_measured_is_told_before_the_training(trained: RunContext) -> None:
    missing = context_of(trained.project.root / "codetune.yaml", **{**BY_TASKS, "train__tasks": "nothing.jsonl"})
    with pytest.raises(UsageError, match=r"There is no file 'nothing.jsonl'"):
        TRAIN.check_ahead(missing, StageRequest(), {"base": trained.project.root / "base"})
    assert model_ref(trained, "tuned").kind == "completion"
