"""The whole pipeline on a small world, its stage_status, and that nothing true is done again."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from codetune import render, workflow
from codetune.data.chat import stop_strings
from codetune.errors import StaleError, UsageError
from codetune.model.load import load_trained_tokenizer
from codetune.run_status import run_status
from codetune.stages import model_ref
from codetune.stages.benchmarks import open_benchmark, open_benchmarks, references_at_hand
from codetune.stages.dataset import ensure_examples
from codetune.stages.pipeline import stages_between
from codetune.stages.runner import stage_settings
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import StageRequest
from codetune.stages.status import require
from codetune.store.block_log import BlockLog, log_path
from codetune.store.examples import read_examples
from codetune.store.files import write_text
from codetune.store.locks import locked
from codetune.store.manifest import manifest_path, read_manifest
from tests.benchmark.published import ALL_FORMATS
from tests.small_world import context_of, make_small_world, rows, run_codetune, write_rows

OF_BENCHMARK = ("generate", "sanitize", "evaluate")


def test_a_run_goes_through_every_stage_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 20)
    first = list(workflow.run(context_of(project), stages_between("score", "evaluate")))
    assert [result.stage for result in first] == ["score", "embed", "select", "train", *OF_BENCHMARK, *OF_BENCHMARK]
    assert [report["model"] for report in workflow.reports_in(context_of(project), first)] == ["base", "tuned"]
    stamps = {path: path.stat().st_mtime_ns for path in _artefacts(tmp_path)}
    again = list(workflow.run(context_of(project), stages_between("score", "evaluate")))
    assert {path: path.stat().st_mtime_ns for path in _artefacts(tmp_path)} == stamps
    assert all(result.reused == result.rows for result in again)
    assert all(line.state == "done" for line in run_status(context_of(project)))
    _test_a_part_of_each_benchmark(project)
    _test_another_run_takes_over_what_it_has_in_common(project)
    _test_a_copied_run_has_nothing_to_do(project)
    _test_what_is_taken_away_changes_nothing(project)
    _test_status_after_changes(project)


def _test_a_part_of_each_benchmark(project: Path) -> None:
    """What the reports say of completions is of the whole benchmark here, and of the part there."""
    context = context_of(project)
    whole, _ = workflow.reports_in(context, list(workflow.run(context, stages_between("evaluate", "evaluate"))))
    part, _ = workflow.reports_in(context, list(workflow.run(context, stages_between("generate", "evaluate"), limit=1)))
    assert (part["tasks"], whole["tasks"]) == (1, 3)
    assert 0 < part["completions"]["tokens"] < whole["completions"]["tokens"]


def _test_another_run_takes_over_what_it_has_in_common(project: Path) -> None:
    """All but the selection, what is trained on it, and what that model writes."""
    own, other = context_of(project).run, context_of(project, name="other", select__ratio=0.8)
    results = list(workflow.run(other, stages_between("score", "evaluate")))
    taken = [(result.stage, result.artefact.stem) for result in results if result.taken_from == str(own.directory)]
    assert taken == [("score", "scores"), ("embed", "embeddings"), *((stage, "base") for stage in OF_BENCHMARK)]
    assert other.run.scores.read_bytes() == own.scores.read_bytes()
    lines = {line.stage: line.detail for line in run_status(other)}
    examples = read_manifest(other.run.examples)
    assert examples is not None
    assert examples.facts["taken_from"] == str(own.directory)
    assert all(lines[stage].endswith(f"taken over from {own.directory}") for stage in ("score", "tasks base"))
    document = render.pipeline(results, workflow.reports_in(other, results), []).document
    assert document["stages"][0]["taken_from"] == str(own.directory)  # type: ignore[index]
    assert next(iter(workflow.run(other, stages_between("score", "embed")))).reused == 20


def _test_a_copied_run_has_nothing_to_do(project: Path) -> None:
    run = context_of(project).run.directory
    shutil.copytree(run, run.with_name("copied"))
    results = list(workflow.run(context_of(project, name="copied"), stages_between("score", "evaluate")))
    assert all(result.reused == result.rows and not result.taken_from for result in results)


def _test_what_is_taken_away_changes_nothing(project: Path) -> None:
    """Here, because a run takes seconds. A sealed model is evaluated without the data it was trained on."""
    data = project.parent / "data.jsonl"
    data.rename(data.with_suffix(".away"))
    lines = {line.stage: line for line in run_status(context_of(project))}
    assert {line.state for line in lines.values()} == {"done"}
    assert lines["score"].detail.endswith("data.jsonl was not found, so it was not compared")
    (report,) = workflow.evaluate_models(
        context_of(project), open_benchmark(context_of(project), "tasks.jsonl"), ["tuned"]
    )
    assert report["model"] == "tuned"
    data.with_suffix(".away").rename(data)


def _test_status_after_changes(project: Path) -> None:
    """Each change is a line that says why: a damaged manifest, other tasks, another setting, another data set."""
    manifest, tasks = project.parent / "runs/small/scores.jsonl.seal", project.parent / "tasks.jsonl"
    whole = manifest.read_bytes()
    manifest.write_bytes(b"{}")
    score = run_status(context_of(project))[0]
    assert score.state == "stale"
    assert score.detail.endswith(f"Move it away, then make scores.jsonl again: mv {manifest} {manifest}.old")
    assert score.command == f"mv {manifest} {manifest}.old"
    with pytest.raises(StaleError, match=f"mv {manifest} {manifest}.old$"):
        require(context_of(project), SELECT)
    manifest.write_bytes(whole)
    _test_damaged_manifests_of_a_benchmark(project)
    longer = {line.stage: line for line in run_status(context_of(project, generate__max_new_tokens=9))}
    assert "max_new_tokens" in longer["tasks base"].detail
    before = tasks.read_bytes()
    tasks.write_bytes(before + b"\n")
    lines = {line.stage: line for line in run_status(context_of(project))}
    assert lines["tasks base"].detail == f"the tasks in {tasks} have changed since"
    tasks.write_bytes(before)
    copied = shutil.copytree(project.parent, project.parent.with_name(f"{project.parent.name}-copied"))
    (copied / "tasks.jsonl").write_bytes(before + b"\n")
    lines = {line.stage: line for line in run_status(context_of(copied / project.name))}
    assert lines["tasks base"].detail == f"the tasks in {copied / 'tasks.jsonl'} have changed since"
    write_rows(project.parent / "data.jsonl", rows(21))
    lines = {line.stage: line for line in run_status(context_of(project))}
    assert all(lines[stage].state == "stale" for stage in ("score", "embed", "select", "train", "tasks tuned"))
    assert "the data set" in lines["select"].detail
    assert lines["tasks base"].state == "done"


def _test_damaged_manifests_of_a_benchmark(project: Path) -> None:
    """The next command sets the manifest aside, without which no other does anything, also before the evaluation."""
    run = context_of(project).run
    evaluation = manifest_path(run.evaluation("tasks", "base"))
    for path in (run.completions("tasks", "base"), run.solutions("tasks", "base"), run.evaluation("tasks", "base")):
        manifest = manifest_path(path)
        kept = {file: file.read_bytes() for file in (manifest, evaluation)}
        manifest.write_bytes(b"{}")
        for _ in range(1 if manifest == evaluation else 2):
            line = {line.stage: line for line in run_status(context_of(project))}["tasks base"]
            assert (line.state, line.command) == ("stale", f"mv {manifest} {manifest}.old")
            evaluation.unlink(missing_ok=True)
        for file, content in kept.items():
            file.write_bytes(content)


def test_stages_that_the_strategy_does_not_need_are_left_out(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 20)
    results = list(workflow.run(context_of(project, select__strategy="all"), stages_between("score", "select")))
    assert [result.stage for result in results] == ["select"]
    assert run_status(context_of(project, select__strategy="all"))[0].state == "not needed"


def test_stages_in_the_wrong_order_and_unknown_ones_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"score comes before train\..*Exchange the two$"):
        stages_between("train", "score")
    with pytest.raises(UsageError, match="did you mean select"):
        stages_between("slect", "train")
    told = run_codetune("run", "--from", "slect", cwd=tmp_path)  # before it is asked for a project file
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "slect is not a stage; did you mean select?" in told.stderr


def test_more_of_k_than_there_are_samples_is_said_before_anything_is_generated(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), evaluate__k=[1, 10])
    with pytest.raises(UsageError, match=r"pass@10, and generate\.samples_per_task makes 1"):
        workflow.evaluate_models(context, open_benchmark(context, "tasks.jsonl"), ["base"])
    assert not context.run.completions("tasks", "base").parent.exists()


def test_every_benchmark_at_hand_is_evaluated_and_the_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(make_small_world(tmp_path, 6), generate__prompt="completion")
    for name in ("cruxeval", "leetcode"):
        write_rows(tmp_path / f"{name}.jsonl", [ALL_FORMATS[name]])
        monkeypatch.setenv(f"{name.upper()}_OVERRIDE_PATH", str(tmp_path / f"{name}.jsonl"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("evalplus.data.utils.CACHE_DIR", str(tmp_path / "evalplus"))
    at_hand = references_at_hand(context)
    assert at_hand == ["cruxeval", "leetcode", "tasks.jsonl"]
    assert "not on this machine, and left out: humaneval, mbpp, humaneval_pro, mbpp_pro." in capsys.readouterr().err
    reports = workflow.evaluate_on_each(context, open_benchmarks(context, "all"), ["base"])
    assert [(report["benchmark"], report["tasks"]) for report in reports] == [
        ("cruxeval", 1),
        ("leetcode", 1),
        ("tasks", 3),
    ]
    monkeypatch.delenv("CRUXEVAL_OVERRIDE_PATH")
    monkeypatch.delenv("LEETCODE_OVERRIDE_PATH")
    with pytest.raises(UsageError, match=r"no file 'nowhere.jsonl'"):
        open_benchmarks(context_of(tmp_path / "codetune.yaml", evaluate__benchmarks=["nowhere.jsonl"]), "all")
    with pytest.raises(UsageError, match="all: no benchmark is on this machine"):
        references_at_hand(context_of(tmp_path / "codetune.yaml", evaluate__benchmarks=["humaneval"]))


def test_models_are_evaluated_in_one_go_compared_and_what_they_lost_is_counted(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), generate__prompt="completion")
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    reports = workflow.evaluate_models(context, open_benchmark(context, "tasks.jsonl"), ["base", "other"])
    # Eight tokens of a random network.
    assert all(report["completions"]["truncated"] == 3 for report in reports)
    (compared,) = workflow.compare(context, reports)
    assert (compared["models"], compared["tasks"]) == ([report["model"] for report in reports], 3)
    assert (compared["base"]["won"], compared["base"]["p_value"]) == ([], 1.0)
    kept = context.run.evaluation("tasks", "base").read_bytes()
    (again,) = workflow.evaluate_models(context, open_benchmark(context, "tasks.jsonl"), ["base"])
    assert again == json.loads(json.dumps(reports[0]))
    assert context.run.evaluation("tasks", "base").read_bytes() == kept


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_checkpoint_of_a_training_is_a_model_of_its_own(method: str, tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 24)
    settings = {
        "select__strategy": "all",
        "train__save_steps": 2,
        "train__keep_checkpoints": 9,
        "train__method": method,
    }
    context = context_of(project, **settings)
    with pytest.raises(UsageError, match="holds no checkpoint"):
        model_ref.checkpoint_names(context)
    list(workflow.run(context, stages_between("select", "train")))
    names = model_ref.checkpoint_names(context)
    assert [Path(name).name for name in names] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert model_ref.names_of_the_run(context, []) == [*names, "tuned"]
    assert model_ref.names_of_the_run(context, ["tuned", "base"]) == ["tuned", "base", *names]
    models = [model_ref.model_ref(context, name) for name in [*names, "tuned"]]
    assert [re.sub("-[0-9a-f]{8}$", "", model.label) for model in models] == [*(Path(n).name for n in names), "tuned"]
    assert len({model.digest for model in models}) == 4
    assert {(model.kind, model_ref.end_of_turn(model)) for model in models} == {("chat", stop_strings("deepseek"))}
    # The last checkpoint is the finished model: the same tokenizer, template and weights.
    tokenizers = [load_trained_tokenizer(model.directory, model.tokenizer, model.chat_format) for model in models]
    turns = [{"role": "user", "content": "Add."}]
    assert len({tokenizer.apply_chat_template(turns, tokenize=False) for tokenizer in tokenizers}) == 1
    workflow.evaluate_models(context, open_benchmark(context, "tasks.jsonl"), [names[0], names[-1], "tuned"])
    written = [context.run.completions("tasks", models[index].label).read_text() for index in (0, 2, 3)]
    assert written[1] == written[2] != written[0]


def test_a_model_that_is_named_twice_is_one_and_an_empty_name_is_none(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), generate__prompt="completion")
    bench, base = open_benchmark(context, "tasks.jsonl"), str(tmp_path / "base")
    assert len(workflow.evaluate_models(context, bench, [base, f"{base}/", f"{base}/../base"])) == 1
    with pytest.raises(UsageError, match="--model is empty"):
        workflow.evaluate_models(context, bench, [base, " "])


def test_run_as_a_command_prints_one_document(tmp_path: Path) -> None:
    make_small_world(tmp_path, 6)
    told = run_codetune("run", "--to", "embed", "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    assert [stage["stage"] for stage in document["stages"]] == ["score", "embed"]
    assert told.returncode == 0


def _artefacts(directory: Path) -> list[Path]:
    run = directory / "runs" / "small"
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "project.json"]
    return [path for path in files if not {".cache", ".locks"} & set(path.parts)]


def test_a_file_of_ones_own_is_never_kept_under_the_name_of_an_official_benchmark(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 6)
    (tmp_path / "tasks.jsonl").rename(tmp_path / "humaneval.jsonl")
    bench = open_benchmark(context_of(project), "humaneval.jsonl")
    assert bench.name.startswith("humaneval-")
    lines = run_status(context_of(project, evaluate__benchmarks=["humaneval.jsonl"]))
    assert lines[-1].stage == f"{bench.name} tuned"


def test_a_benchmark_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 6), evaluate__benchmarks=["humanevl"])
    with pytest.raises(UsageError, match="did you mean humaneval"):
        next(workflow.run(context, stages_between("score", "evaluate")))
    assert not context.run.scores.exists()


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 6)
    context = context_of(project, evaluate__benchmarks=["tasks.jsonl", "other/tasks.jsonl"])
    with pytest.raises(UsageError, match="'tasks' twice"):
        list(workflow.run(context, stages_between("generate", "evaluate")))


def test_status_says_how_far_a_running_stage_is_and_which_process_runs_it(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path, 20))
    ensure_examples(context)
    examples = [example.id for example in read_examples(context.run)]
    parts = context.run.parts(context.run.scores)
    write_text(parts / "settings.json", json.dumps(dict(stage_settings(context, SCORE, StageRequest()))))
    with BlockLog(log_path(parts, (0, 1))) as log:
        log.append(examples[:7], [b"{}"] * 7)
    with locked(context.run, "score", None), locked(context.run, "sanitize-tasks-base", None):
        found = run_status(context)
    lines = {line.stage: line.detail for line in found}
    assert [line.stage for line in found if line.is_running] == ["score", "tasks base"]
    process = rf"Process {os.getpid()} on .*, since [\d:]+: codetune.*"
    assert re.fullmatch(f"7 of 20 rows; score is running: {process}", lines["score"])
    assert re.fullmatch(f"sanitize is running: {process}", lines["tasks base"])
    assert {line.stage: line.detail for line in run_status(context)}["score"] == "7 of 20 rows"
