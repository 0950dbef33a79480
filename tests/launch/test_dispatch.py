"""Jobs as they reach other processes, and which processes run them. Whole trainings are in training/test_ranks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.errors import UsageError
from codetune.launch.dispatch import Job, perform, process_count
from codetune.launch.workers import Progress
from codetune.project.file import read_project
from codetune.stages.pipeline import run_job
from tests import pipeline
from tests.small_world import context_of, make_small_world


def test_a_job_arrives_as_it_was_sent(tmp_path: Path) -> None:
    file = tmp_path / "codetune.yaml"
    file.write_text("name: far\nlaunch: {processes: 3}\ntrain: {learning_rate: 3e-4}\n")
    sent = Job("train", read_project(file, ["select.ratio=0.1"], {}), {"saved": "/a b/model"})
    arrived = Job.from_json(sent.to_json())
    assert arrived == sent
    assert arrived.project.root == tmp_path.resolve()
    assert arrived.project.overrides == {"select.ratio": 0.1}
    assert arrived.project.run_dir == tmp_path.resolve() / "runs/far"


def test_the_process_count_is_the_projects_or_one_without_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "codetune.yaml"
    file.write_text("launch: {processes: 3}\n")
    assert process_count(read_project(file, [], {})) == 3
    file.write_text("{}\n")
    assert process_count(read_project(file, [], {})) >= 1


def test_a_job_of_one_process_runs_in_the_command(tmp_path: Path) -> None:
    progress: list[tuple[int, Progress]] = []
    context = context_of(make_small_world(tmp_path, 30), select__strategy="random", launch__processes=1)
    pipeline.select(context)
    paths = {"model": str(tmp_path / "base"), "directory": str(tmp_path / "train"), "saved": str(tmp_path / "saved")}
    job = Job("train", context.project, {**paths, "replace": False, "tasks": None})
    (result,) = perform(job, 1, lambda rank, message: progress.append((rank, message)), run_job)
    assert isinstance(result, dict)
    assert result["rows"] == 12
    assert [message["step"] for _, message in progress if "step" in message] == [1, 2, 3]
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_another_process_count_than_the_launchers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "codetune.yaml"
    file.write_text("launch: {processes: 3}\n")
    project = read_project(file, [], {})
    with pytest.raises(UsageError, match=r"launch.processes is 3, and this command was started 2 times"):
        perform(Job("train", project, {}), process_count(project), lambda rank, progress: None, run_job)


def test_a_machine_other_than_the_first_starts_no_job_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "first")
    file = tmp_path / "codetune.yaml"
    file.write_text("launch: {nodes: 2}\n")
    with pytest.raises(UsageError, match=r"machine 1 of 2, which follows .* codetune train$"):
        perform(Job("train", read_project(file, [], {}), {}), 1, lambda rank, progress: None, run_job)
