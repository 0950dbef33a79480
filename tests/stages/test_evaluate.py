"""Generate, sanitize and evaluate on a small world: what belongs to which model, and what is taken up again."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from codetune.benchmark.parts import part_of
from codetune.errors import CodetuneError, DataError, StaleError, UsageError
from codetune.sandbox.probe import choose_tier
from codetune.stages.benchmarks import benchmark_of_samples, is_samples_file, open_benchmark, samples_request
from codetune.stages.evaluate import EVALUATE
from codetune.stages.generate import GENERATE
from codetune.stages.model_ref import model_ref
from codetune.stages.runner import make_recipe, run_stage
from codetune.stages.stage import RunContext, Stage, StageRequest
from codetune.stages.status import stage_status
from codetune.store.block_log import LineLog, open_parts
from codetune.store.manifest import manifest_path
from codetune.workflow import model_request
from tests import pipeline
from tests.benchmark.published import ALL_FORMATS, MBPP_PRO
from tests.small_world import context_of, make_small_world, write_rows

GOOD = [{"task_id": f"Small/{n}", "solution": f"def add_{n}(x):\n    return x + {n}\n"} for n in range(3)]


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return context_of(make_small_world(tmp_path, 6))


def samples(context: RunContext, rows: list[dict[str, Any]], name: str = "samples.jsonl") -> Path:
    write_rows(context.project.root / name, rows)
    return context.project.root / name


def begun(context: RunContext, stage: Stage, request: StageRequest) -> Path:
    """The parts of an artefact as an interrupted command has left them, without any."""
    recipe = make_recipe(context, stage, request)
    open_parts(context.run.parts(recipe.artefact), recipe.identity(), refuse_others=False)
    return context.run.parts(recipe.artefact)


def judged(context: RunContext, rows: list[dict[str, Any]]) -> Any:
    return pipeline.evaluate_file(context, open_benchmark(context, "tasks.jsonl"), samples(context, rows))


def test_samples_of_anybody_are_judged_and_the_report_is_kept(context: RunContext) -> None:
    wrong = {"task_id": "Small/1", "solution": "def add_1(x):\n    return abs(x) + 1\n"}
    report = judged(context, [GOOD[0], wrong, GOOD[2]])
    assert report["verdicts"]["Small/1"] == [{"base": "pass", "plus": "fail"}]
    assert report["pass_at_k"] == {"base": {"pass@1": 1.0}, "plus": {"pass@1": 2 / 3}}
    assert (report["benchmark"], report["sandbox"], report["tasks_in_benchmark"]) == ("tasks", choose_tier("auto"), 3)
    assert report["failures"] == {"Small/1": ["plus call 1, add_1(-1): wrong answer"]}
    kept = context.run.evaluation("tasks", report["model"])
    assert json.loads(kept.read_text()) == json.loads(json.dumps(report))
    stamp = kept.stat().st_mtime_ns
    assert judged(context, [GOOD[0], wrong, GOOD[2]])["verdicts"] == report["verdicts"]
    assert kept.stat().st_mtime_ns == stamp


def test_changed_samples_of_the_same_name_are_judged_anew(context: RunContext) -> None:
    assert judged(context, GOOD)["pass_at_k"]["base"]["pass@1"] == 1.0
    assert judged(context, [{**row, "solution": "no"} for row in GOOD])["pass_at_k"]["base"]["pass@1"] == 0.0


def test_verdicts_of_earlier_rules_are_made_again_and_it_is_said(context: RunContext) -> None:
    report = judged(context, GOOD)
    artefact = context.run.evaluation("tasks", report["model"])
    seal = manifest_path(artefact)
    document = json.loads(seal.read_text())
    del document["settings"]["rules"]
    seal.write_text(json.dumps(document))
    tasks = open_benchmark(context, "tasks.jsonl")
    request = samples_request(context, tasks, context.project.root / "samples.jsonl")
    assert f"{artefact} was made on " in (why := stage_status(context, EVALUATE, request).why)
    assert why.endswith("by rules that codetune has changed since")
    assert run_stage(context, EVALUATE, request).facts["replaced"] == why
    assert stage_status(context, EVALUATE, request).state == "done"


def test_samples_for_a_part_of_the_tasks_are_judged_on_that_part_with_a_warning(
    context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    report = judged(context, GOOD[:1])
    assert (report["tasks"], report["tasks_in_benchmark"]) == (1, 3)
    assert "1 of the 3 tasks" in capsys.readouterr().err


def test_samples_for_unknown_tasks_are_an_error_that_names_them(context: RunContext) -> None:
    with pytest.raises(DataError, match="Small/9"):
        judged(context, [*GOOD, {"task_id": "Small/9", "solution": "x"}])


def test_verdicts_found_from_an_interrupted_run_are_not_made_again(context: RunContext) -> None:
    bench = open_benchmark(context, "tasks.jsonl")
    path = samples(context, GOOD)
    parts = begun(context, EVALUATE, samples_request(context, bench, path))
    with LineLog(parts / "verdicts.jsonl") as log:
        log.append({"task_id": "Small/0", "base": "timeout", "plus": "timeout", "sample": 0})
    report = pipeline.evaluate_file(context, bench, path)
    assert report["verdicts"]["Small/0"] == [{"base": "timeout", "plus": "timeout"}]
    assert not parts.exists()


def test_completions_are_taken_up_again_and_those_there_are_not_made_twice(context: RunContext) -> None:
    bench, base = open_benchmark(context, "tasks.jsonl"), model_ref(context, "base")
    parts = begun(context, GENERATE, model_request(bench, base))
    with LineLog(parts / "completions.jsonl") as log:
        row = {"task_id": "Small/1", "completion": "    return x + 1\n"}
        log.append({**row, "sample": 0, "tokens": 5, "truncated": False})
    result = pipeline.generate(context, bench, base)
    assert (result.rows, result.reused) == (3, 1)
    rows = [json.loads(line) for line in result.artefact.read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["Small/0", "Small/1", "Small/2"]
    assert rows[1] == row
    assert result.facts["truncated"] == 2  # the two that were made here have 8 tokens of a random network
    pipeline.sanitize(context, bench, base)
    assert pipeline.evaluate(context, bench, base, bench)["verdicts"]["Small/1"][0]["plus"] == "pass"


def test_samples_do_not_depend_on_where_they_were_taken_up_again(context: RunContext) -> None:
    settings = {"generate__samples_per_task": 3, "generate__temperature": 0.9, "evaluate__k": [1, 2]}
    sampled = context_of(context.project.root / "codetune.yaml", **settings)
    bench, base = open_benchmark(sampled, "tasks.jsonl"), model_ref(sampled, "base")
    first = pipeline.generate(sampled, bench, base)
    whole = first.artefact.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["task_id"] for row in rows] == [f"Small/{number}" for number in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert len({row["completion"] for row in rows}) == 9
    first.artefact.unlink()
    parts = begun(sampled, GENERATE, model_request(bench, base))
    with LineLog(parts / "completions.jsonl") as log:
        for index in (7, 1, 3):
            log.append({**rows[index], "sample": index % 3, "tokens": 8, "truncated": True})
    again = pipeline.generate(sampled, bench, base)
    assert (again.reused, again.artefact.read_text()) == (3, whole)
    pipeline.sanitize(sampled, bench, base)
    report = pipeline.evaluate(sampled, bench, base, bench)
    assert (report["samples"], list(report["pass_at_k"]["base"])) == (9, ["pass@1", "pass@2"])


def test_another_seed_draws_other_samples_and_means_nothing_to_greedy_ones(context: RunContext) -> None:
    def made(**settings: Any) -> str:
        other = context_of(context.project.root / "codetune.yaml", **settings)
        bench = open_benchmark(other, "tasks.jsonl")
        return pipeline.generate(other, bench, model_ref(other, "base")).artefact.read_text()

    drawn = {made(generate__temperature=0.9, seed=seed) for seed in (1, 2)}
    assert len(drawn) == 2
    assert made(seed=1) not in drawn
    stamp = context.run.completions("tasks", "base").stat().st_mtime_ns
    made(seed=2)
    assert context.run.completions("tasks", "base").stat().st_mtime_ns == stamp


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 reads a name that transformers 5.23 has renamed
def test_adapters_without_a_tokenizer_have_that_of_the_model_below(context: RunContext) -> None:
    base = context.project.root / "base"
    network: Any = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        context.project.root / "adapter"
    )
    said = context_of(context.project.root / "codetune.yaml", generate__prompt="completion")
    model = model_ref(said, str(context.project.root / "adapter"))
    assert model.tokenizer == base
    bench = open_benchmark(said, "tasks.jsonl")
    written = pipeline.generate(said, bench, model).artefact.read_text()
    assert written == pipeline.generate(said, bench, model_ref(said, "base")).artefact.read_text()
    shutil.copy(base / "tokenizer.json", context.project.root / "adapter")
    assert model_ref(said, str(context.project.root / "adapter")).tokenizer == model.directory


def test_a_model_replaced_at_the_same_path_is_another_model(context: RunContext) -> None:
    bench, before = open_benchmark(context, "tasks.jsonl"), model_ref(context, "base")
    pipeline.generate(context, bench, before)
    weights = context.project.root / "base" / "model.safetensors"
    changed = {name: tensor * 1.5 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    after = model_ref(context_of(context.project.root / "codetune.yaml"), "base")
    assert after.digest != before.digest
    with pytest.raises(StaleError, match="codetune generate tasks"):
        pipeline.sanitize(context, bench, after)
    assert pipeline.generate(context, bench, after).reused == 0


def test_a_model_that_nothing_tells_how_to_prompt_must_be_said(context: RunContext) -> None:
    shutil.copytree(context.project.root / "base", context.project.root / "other")
    bench = open_benchmark(context, "tasks.jsonl")
    with pytest.raises(UsageError, match="--instruct or --base"):
        pipeline.generate(context, bench, model_ref(context, "other"))
    said = context_of(context.project.root / "codetune.yaml", generate__prompt="completion")
    found = model_ref(said, "other")
    assert found.kind == "completion"
    assert found.label == f"other-{found.digest[:8]}"
    pipeline.generate(said, bench, found)
    # What was said to generate need not be said again.
    assert pipeline.sanitize(context, bench, model_ref(context, "other")).rows == 3


def test_a_setting_by_flag_of_generate_makes_nothing_stale_and_an_edited_file_is_told(context: RunContext) -> None:
    bench = open_benchmark(context, "tasks.jsonl")
    flagged = context_of(context.project.root / "codetune.yaml", generate__max_new_tokens=3)
    completions = pipeline.generate(flagged, bench, model_ref(flagged, "base")).artefact
    base = model_ref(context, "base")
    assert pipeline.sanitize(context, bench, base).rows == 3
    assert pipeline.generate(context, bench, base).reused == 0
    pipeline.sanitize(context, bench, base)
    with completions.open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(StaleError, match=r"was changed after codetune wrote it\. Run: codetune generate"):
        pipeline.sanitize(context, bench, base)


def test_hidden_files_have_a_name_too(context: RunContext) -> None:
    root = context.project.root
    shutil.copy(root / "tasks.jsonl", root / ".tasks.jsonl")
    bench = open_benchmark(context, ".tasks.jsonl")
    assert bench.name == "tasks"
    report = pipeline.evaluate_file(context, bench, samples(context, GOOD, ".mine.jsonl"))
    assert report["model"].startswith("mine-")


def test_evaluating_before_generating_names_the_command(context: RunContext) -> None:
    bench, base = open_benchmark(context, "tasks.jsonl"), model_ref(context, "base")
    with pytest.raises(StaleError, match=r"Run: codetune generate tasks\.jsonl --model base"):
        pipeline.evaluate(context, bench, base, bench)


def test_a_samples_file_is_sanitized_for_the_benchmark_that_its_tasks_tell(context: RunContext) -> None:
    fenced = [{**row, "solution": f"Sure!\n```python\n{row['solution']}```\nDone."} for row in GOOD]
    path = samples(context, fenced, "chat.jsonl")
    assert is_samples_file(context, str(path))
    result = pipeline.sanitize_file(context, path)
    assert (result.facts["changed"], result.facts["not_parsing"]) == (3, 0)
    assert result.artefact.parent.name == "tasks"
    tasks = context.project.root / "tasks.jsonl"
    assert not is_samples_file(context, str(tasks))
    packed = tasks.with_name("packed.jsonl.gz")
    packed.write_bytes(gzip.compress(tasks.read_bytes()))
    assert not is_samples_file(context, str(packed))
    with_prompts = samples(context, [{**row, "prompt": "Write it."} for row in GOOD], "prompts.jsonl")
    assert is_samples_file(context, str(with_prompts))


def test_samples_for_the_demo_are_known_by_their_tasks(context: RunContext) -> None:
    path = samples(context, [{"task_id": "Demo/0", "solution": "x = 1"}], "demo.jsonl")
    assert pipeline.sanitize_file(context, path).rows == 1


def test_a_samples_file_that_is_not_there_is_told(context: RunContext) -> None:
    with pytest.raises(DataError, match=r"no file .*nowhere\.jsonl"):
        pipeline.evaluate_file(context, open_benchmark(context, "tasks.jsonl"), Path("nowhere.jsonl"))


def test_tasks_that_cannot_be_run_are_named_in_a_warning_and_in_the_report(
    context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(context.project.root / "pro.jsonl", [MBPP_PRO, MBPP_PRO | {"id": 8, "test_code": "assert halves(1, 2)"}])
    bench = open_benchmark(context, "pro.jsonl")
    assert "pro: 1 task of 2 left out" in (told := capsys.readouterr().err)
    assert "MbppPro/8 (assert halves(1, 2))" in told
    path = samples(context, [{"task_id": "MbppPro/7", "solution": "def halves(x, y):\n    return x / 2, y / 2\n"}])
    report = pipeline.evaluate_file(context, bench, path)
    assert (report["tasks"], report["tasks_in_benchmark"]) == (1, 1)
    assert report["left_out"] == {"MbppPro/8": "assert halves(1, 2)"}
    assert report["pass_at_k"]["base"]["pass@1"] == 1


def test_samples_of_a_published_benchmark_are_matched_with_the_projects_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    context = context_of(make_small_world(tmp_path, 6), evaluate__benchmarks=["pro.jsonl"])
    write_rows(tmp_path / "pro.jsonl", [MBPP_PRO])
    path = samples(context, [{"task_id": "MbppPro/7", "solution": "def halves(x, y):\n    return x / 2, y / 2\n"}])
    assert benchmark_of_samples(context, path) == "pro.jsonl"
    monkeypatch.setenv("MBPP_PRO_OVERRIDE_PATH", str(tmp_path / "pro.jsonl"))
    assert benchmark_of_samples(context, path) == "mbpp_pro"


def test_a_file_of_published_tasks_is_no_file_of_samples(context: RunContext) -> None:
    for name, row in ALL_FORMATS.items():
        assert not is_samples_file(context, str(samples(context, [row], f"{name}.jsonl")))


def test_a_part_of_the_tasks_has_artefacts_of_its_own(context: RunContext) -> None:
    bench = open_benchmark(context, "tasks.jsonl")
    path = samples(context, GOOD)
    whole = pipeline.evaluate_file(context, bench, path)
    first = pipeline.evaluate_file(context, part_of(bench, 1, []), path, complete=True)
    named = pipeline.evaluate_file(context, part_of(bench, None, ["Small/2"]), path, complete=True)
    assert [list(report["verdicts"]) for report in (first, named)] == [["Small/0"], ["Small/2"]]
    assert [(report["benchmark"], report["tasks_in_benchmark"]) for report in (first, named)] == [("tasks", 3)] * 2
    assert pipeline.evaluate_file(context, bench, path) == json.loads(json.dumps(whole))
    assert part_of(bench, 3, []) == bench


def test_a_part_is_judged_by_the_solutions_of_the_whole(context: RunContext) -> None:
    bench, base = open_benchmark(context, "tasks.jsonl"), model_ref(context, "base")
    pipeline.generate(context, bench, base)
    pipeline.sanitize(context, bench, base)
    part = part_of(bench, None, ["Small/1"])
    assert list(pipeline.evaluate(context, bench, base, part)["verdicts"]) == ["Small/1"]


def test_a_task_that_the_benchmark_has_not_is_told_with_the_nearest(context: RunContext) -> None:
    bench = open_benchmark(context, "tasks.jsonl")
    with pytest.raises(UsageError, match=r"--task Small/7: .*did you mean Small/"):
        part_of(bench, None, ["Small/7"])


def test_where_samples_must_be_complete_a_missing_one_is_an_error(context: RunContext) -> None:
    bench = open_benchmark(context, "tasks.jsonl")
    with pytest.raises(DataError, match=r"2 of the 3 tasks of tasks: Small/1 is the first without"):
        pipeline.evaluate_file(context, bench, samples(context, [GOOD[0], GOOD[2]]), complete=True)


def test_without_a_sandbox_the_user_is_warned_and_the_result_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(make_small_world(tmp_path, 6), evaluate__sandbox="none")
    assert judged(context, GOOD)["sandbox"] == "none"
    assert "without a sandbox" in capsys.readouterr().err


def test_a_sandbox_that_does_not_work_stops_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(make_small_world(tmp_path, 6), evaluate__sandbox="bubblewrap")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CodetuneError, match="No sandbox works here"):
        judged(context, GOOD)
