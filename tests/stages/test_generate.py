"""Completions by several processes: each takes its part, and what comes out is what one process writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from codetune.errors import InputError, ModelError
from codetune.launch.dispatch import Job, WorkerContext
from codetune.model.adapters import add_adapters
from codetune.model.load import load_model
from codetune.model.tensor_parallel import VisibleGpus
from codetune.project.sections import LoraSettings, Model, Project
from codetune.records import ALONE, Rank
from codetune.stages.benchmarks import open_benchmark
from codetune.stages.generate import WorkList, complete, completed_rows
from codetune.stages.model_ref import model_ref
from tests import pipeline
from tests.forks import Forked, Forks, slow
from tests.model.builders import byte_tokenizer
from tests.small_world import await_end, children, context_of, make_small_world, write_rows

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = {"generate__samples_per_task": 3, "generate__temperature": 0.9}
GREEDY = {"generate__prompt": "completion", "generate__max_new_tokens": 40, "generate__batch_size": 2}


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    written = []
    for processes in (1, 2):
        context = context_of(make_small_world(tmp_path / str(processes), 6), launch__processes=processes, **SAMPLED)
        bench = open_benchmark(context, "tasks.jsonl")
        result = pipeline.generate(context, bench, model_ref(context, "base"))
        written.append(result.artefact.read_text())
        assert (result.rows, result.reused) == (9, 0)
        assert not context.run.parts(result.artefact).exists()
    assert written[0] == written[1]


def test_every_rank_takes_each_nth_item_and_logs_it_by_itself(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), **SAMPLED)
    bench, base = open_benchmark(context, "tasks.jsonl"), model_ref(context, "base")
    missing = [(f"Small/{task}", number) for task in range(3) for number in range(3)]
    alone = WorkList(base, bench.file, missing, tmp_path / "alone")
    sent: list[object] = []
    assert complete_here(context.project, alone, ALONE, sent) == 9
    assert len(sent) == 9
    shared = WorkList(base, bench.file, missing, tmp_path / "shared")
    assert [complete_here(context.project, shared, Rank(rank, 4, rank, 4), sent) for rank in range(4)] == [3, 2, 2, 2]
    assert completed_rows(tmp_path / "shared") == completed_rows(tmp_path / "alone")
    second = (tmp_path / "shared" / "completions-1.jsonl").read_text().splitlines()
    assert {(row["task_id"], row["sample"]) for row in map(json.loads, second)} == {("Small/0", 1), ("Small/1", 2)}


def test_a_task_whose_prompt_fills_the_window_fails_and_the_others_go_on(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), **GREEDY)
    tasks = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    tasks[0]["prompt"] += "#" * 5000 + "\n"
    write_rows(tmp_path / "tasks.jsonl", tasks)
    long = tasks[0]["task_id"]
    bench = open_benchmark(context, "tasks.jsonl")
    result = pipeline.generate(context, bench, model_ref(context, "base"))
    assert (result.rows, result.refused) == (2, {"prompt fills the model's window of 4096 tokens": 1})
    rows = [json.loads(line) for line in result.artefact.read_text().splitlines()]
    assert rows[0] == {"task_id": long, "solution": "", "refused": "prompt fills the model's window of 4096 tokens"}
    pipeline.sanitize(context, bench, model_ref(context, "base"))
    report = pipeline.evaluate(context, bench, model_ref(context, "base"))
    assert (report["tasks"], report["verdicts"][long]) == (3, [{"base": "fail", "plus": "fail"}])
    write_rows(tmp_path / "tasks.jsonl", tasks[:1])
    with pytest.raises(InputError, match=r"No task of tasks can be asked \(1 prompt fills the model's window"):
        pipeline.generate(context, open_benchmark(context, "tasks.jsonl"), model_ref(context, "base"))


def test_a_work_list_reaches_another_process_as_json(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6))
    tasks = open_benchmark(context, "tasks.jsonl")
    sent = WorkList(model_ref(context, "base"), tasks.file, [("Small/0", 0)], tmp_path)
    arrived = WorkList.read(json.loads(json.dumps(sent.document())))
    assert arrived == sent
    complete_here(context.project, arrived, ALONE, [])
    assert list(completed_rows(tmp_path)) == [("Small/0", 0)]


def test_processes_that_hold_one_model_together_write_what_one_does(tmp_path: Path) -> None:
    """The ranks of a launcher, two models one after the other: whole weights, and adapters over them."""
    project = make_small_world(tmp_path, 6)
    adapters = save_adapters(tmp_path)
    models = ("base", str(adapters))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    settings = [f"{name.replace('__', '.')}={value}" for name, value in GREEDY.items()]
    done = subprocess.run(
        [*torchrun, "tests.stages.together", project, "2", tmp_path / "shared", *settings, "--", *models],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {model: written_alone(project, model, tmp_path / "alone", GREEDY) for model in models}
    assert expected["base"] != expected[str(adapters)]
    for model in models:
        parts = tmp_path / "shared" / Path(model).name
        assert completed_rows(parts) == expected[model]
        assert [path.name for path in parts.iterdir()] == ["completions-0.jsonl"]


def test_generating_asks_first_whether_the_gpus_hold_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(make_small_world(tmp_path, 6), launch__processes=1)
    bench, base = open_benchmark(context, "tasks.jsonl"), model_ref(context, "base")
    monkeypatch.setattr("codetune.model.tensor_parallel.visible_gpus", lambda: VisibleGpus(1, 1000))
    with pytest.raises(ModelError, match=r"there is one process. Set launch.processes: auto"):
        pipeline.generate(context, bench, base)


def test_a_model_held_together_is_taken_up_after_every_kind_of_end(tmp_path: Path, forks: Forks) -> None:
    project, parts = make_small_world(tmp_path, 6), tmp_path / "shared"
    settings = {**SAMPLED, "generate__max_new_tokens": 40, "generate__batch_size": 1}
    expected = written_alone(project, "base", tmp_path / "alone", settings)
    log = parts / "base" / "completions-0.jsonl"

    with together(forks, project, parts, settings) as command:
        await_lines(log, 1)
        workers = children(command.pid)
        os.kill(workers[-1], signal.SIGKILL)
        _, told = command.communicate(timeout=60)
    assert command.returncode == 1
    assert f"(pid {workers[-1]}) was killed by SIGKILL" in told
    assert "Traceback" not in told
    await_end(workers)
    before = log.read_bytes()
    assert 0 < before.count(b"\n") < len(expected)

    with together(forks, project, parts, settings) as command:
        await_lines(log, before.count(b"\n") + 1)
        workers = children(command.pid)
        command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=60)
    assert command.returncode == 130, told
    assert "Traceback" not in told
    await_end(workers)
    assert before.count(b"\n") < log.read_bytes().count(b"\n") < len(expected)

    assert log.read_bytes().startswith(before)
    assert written_alone(project, "base", parts, settings) == expected  # the rest by one process


def written_alone(project: Path, model: str, parts: Path, settings: Mapping[str, Any]) -> dict[tuple[str, int], Any]:
    context = context_of(project, **settings)
    bench = open_benchmark(context, "tasks.jsonl")
    own, numbers = parts / Path(model).name, range(context.project.generate.samples_per_task)
    work = [(problem.task_id, number) for problem in bench.problems for number in numbers]
    missing = [item for item in work if item not in completed_rows(own)]
    complete_here(context.project, WorkList(model_ref(context, model), bench.file, missing, own), ALONE, [])
    return completed_rows(own)


def complete_here(project: Project, work: WorkList, rank: Rank, sent: list[object]) -> object:
    """What a worker process of that rank does; `sent` gets its messages."""
    return complete(Job("generate", project, work.document()), WorkerContext(rank, None, sent.append))


@contextmanager
def together(forks: Forks, project: Path, parts: Path, settings: Mapping[str, Any]) -> Iterator[Forked]:
    """The command under way, slow enough to be stopped, and gone when the block ends."""
    said = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    words = (str(project), "2", str(parts), *said, "--", "base")
    command = forks.start(ROOT, slow(0.3), "tests.stages.together", *words)
    try:
        yield command
    finally:
        command.kill()
        command.wait()


def save_adapters(world: Path) -> Path:
    """Adapters of the base model that change what it writes."""
    base = load_model(world / "base", Model(dtype="float32"), "cpu")
    model = add_adapters(base, "lora", LoraSettings(), 1)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(0, 0.2)
    model.save_pretrained(world / "adapted")
    byte_tokenizer(bos=True).save_pretrained(world / "adapted")
    return world / "adapted"


def await_lines(log: Path, count: int) -> None:
    until = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert time.monotonic() < until
        time.sleep(0.005)
