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

from codetune.errors import CodetuneError, DataError, StaleError, UsageError
from codetune.sandbox.probe import choose_tier
from codetune.stages import evaluate
from codetune.stages.status import Desk
from codetune.store.block_log import LineLog
from tests.small_world import desk_of, make_small_world, write_rows

GOOD = [{"task_id": f"Small/{n}", "solution": f"def add_{n}(x):\n    return x + {n}\n"} for n in range(3)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return desk_of(make_small_world(tmp_path, 6))


def samples(desk: Desk, rows: list[dict[str, Any]], name: str = "samples.jsonl") -> Path:
    write_rows(desk.project.root / name, rows)
    return desk.project.root / name


def judged(desk: Desk, rows: list[dict[str, Any]]) -> Any:
    return evaluate.evaluate_file(desk, evaluate.open_bench(desk, "tasks.jsonl"), samples(desk, rows))


def test_samples_of_anybody_are_judged_and_the_report_is_kept(desk: Desk) -> None:
    wrong = {"task_id": "Small/1", "solution": "def add_1(x):\n    return abs(x) + 1\n"}
    report = judged(desk, [GOOD[0], wrong, GOOD[2]])
    assert report["verdicts"]["Small/1"] == [{"base": "pass", "plus": "fail"}]
    assert report["pass_at_k"] == {"base": {"pass@1": 1.0}, "plus": {"pass@1": 2 / 3}}
    assert (report["benchmark"], report["sandbox"], report["tasks_in_benchmark"]) == ("tasks", choose_tier("auto"), 3)
    assert report["failures"] == {"Small/1": ["plus call 1, add_1(-1): wrong answer"]}
    kept = desk.run.evaluation("tasks", report["model"])
    assert json.loads(kept.read_text()) == json.loads(json.dumps(report))
    stamp = kept.stat().st_mtime_ns
    assert judged(desk, [GOOD[0], wrong, GOOD[2]])["verdicts"] == report["verdicts"]
    assert kept.stat().st_mtime_ns == stamp


def test_changed_samples_of_the_same_name_are_judged_anew(desk: Desk) -> None:
    assert judged(desk, GOOD)["pass_at_k"]["base"]["pass@1"] == 1.0
    assert judged(desk, [{**row, "solution": "no"} for row in GOOD])["pass_at_k"]["base"]["pass@1"] == 0.0


def test_samples_for_a_part_of_the_tasks_are_judged_on_that_part_with_a_warning(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    report = judged(desk, GOOD[:1])
    assert (report["tasks"], report["tasks_in_benchmark"]) == (1, 3)
    assert "1 of the 3 tasks" in capsys.readouterr().err


def test_samples_for_unknown_tasks_are_an_error_that_names_them(desk: Desk) -> None:
    with pytest.raises(DataError, match="Small/9"):
        judged(desk, [*GOOD, {"task_id": "Small/9", "solution": "x"}])


def test_verdicts_found_from_an_interrupted_run_are_not_made_again(desk: Desk) -> None:
    bench = evaluate.open_bench(desk, "tasks.jsonl")
    path = samples(desk, GOOD)
    label = evaluate._file_label(desk, path)
    recipe = evaluate._evaluation(desk, bench, label, path)
    parts = desk.run.parts(recipe.artefact)
    evaluate.open_parts(parts, recipe.identity(), refuse_others=False)
    with LineLog(parts / "verdicts.jsonl") as log:
        log.append({"task_id": "Small/0", "base": "timeout", "plus": "timeout", "sample": 0})
    report = evaluate.evaluate_file(desk, bench, path)
    assert report["verdicts"]["Small/0"] == [{"base": "timeout", "plus": "timeout"}]
    assert not parts.exists()


def test_completions_are_taken_up_again_and_those_there_are_not_made_twice(desk: Desk) -> None:
    bench, base = evaluate.open_bench(desk, "tasks.jsonl"), evaluate.contestant(desk, "base")
    recipe = evaluate._completions(desk, bench, base)
    parts = desk.run.parts(recipe.artefact)
    evaluate.open_parts(parts, recipe.identity(), refuse_others=False)
    with LineLog(parts / "completions.jsonl") as log:
        row = {"task_id": "Small/1", "completion": "    return x + 1\n"}
        log.append({**row, "sample": 0, "tokens": 5, "truncated": False})
    result = evaluate.generate(desk, bench, base)
    assert (result.rows, result.reused) == (3, 1)
    rows = [json.loads(line) for line in result.artefact.read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["Small/0", "Small/1", "Small/2"]
    assert rows[1] == row
    assert result.facts["truncated"] == 2  # the two that were made here have 8 tokens of a random network
    evaluate.sanitize(desk, bench, base)
    assert evaluate.evaluate(desk, bench, base, bench)["verdicts"]["Small/1"][0]["plus"] == "pass"


def test_samples_do_not_depend_on_where_they_were_taken_up_again(desk: Desk) -> None:
    settings = {"generate__samples_per_task": 3, "generate__temperature": 0.9, "evaluate__k": [1, 2]}
    sampled = desk_of(desk.project.root / "codetune.yaml", **settings)
    bench, base = evaluate.open_bench(sampled, "tasks.jsonl"), evaluate.contestant(sampled, "base")
    first = evaluate.generate(sampled, bench, base)
    whole = first.artefact.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["task_id"] for row in rows] == [f"Small/{number}" for number in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert len({row["completion"] for row in rows}) == 9
    first.artefact.unlink()
    parts = sampled.run.parts(first.artefact)
    recipe = evaluate._completions(sampled, bench, base)
    evaluate.open_parts(parts, recipe.identity(), refuse_others=False)
    with LineLog(parts / "completions.jsonl") as log:
        for index in (7, 1, 3):
            log.append({**rows[index], "sample": index % 3, "tokens": 8, "truncated": True})
    again = evaluate.generate(sampled, bench, base)
    assert (again.reused, again.artefact.read_text()) == (3, whole)
    evaluate.sanitize(sampled, bench, base)
    report = evaluate.evaluate(sampled, bench, base, bench)
    assert (report["samples"], list(report["pass_at_k"]["base"])) == (9, ["pass@1", "pass@2"])


def test_another_seed_draws_other_samples_and_means_nothing_to_greedy_ones(desk: Desk) -> None:
    def made(**settings: Any) -> str:
        other = desk_of(desk.project.root / "codetune.yaml", **settings)
        bench = evaluate.open_bench(other, "tasks.jsonl")
        return evaluate.generate(other, bench, evaluate.contestant(other, "base")).artefact.read_text()

    drawn = {made(generate__temperature=0.9, seed=seed) for seed in (1, 2)}
    assert len(drawn) == 2
    assert made(seed=1) not in drawn
    stamp = desk.run.completions("tasks", "base").stat().st_mtime_ns
    made(seed=2)
    assert desk.run.completions("tasks", "base").stat().st_mtime_ns == stamp


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 reads a name that transformers 5.23 has renamed
def test_adapters_without_a_tokenizer_have_that_of_the_model_below(desk: Desk) -> None:
    base = desk.project.root / "base"
    network: Any = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        desk.project.root / "adapter"
    )
    said = desk_of(desk.project.root / "codetune.yaml", generate__prompt="completion")
    model = evaluate.contestant(said, str(desk.project.root / "adapter"))
    assert model.tokenizer == base
    bench = evaluate.open_bench(said, "tasks.jsonl")
    written = evaluate.generate(said, bench, model).artefact.read_text()
    assert written == evaluate.generate(said, bench, evaluate.contestant(said, "base")).artefact.read_text()
    shutil.copy(base / "tokenizer.json", desk.project.root / "adapter")
    assert evaluate.contestant(said, str(desk.project.root / "adapter")).tokenizer == model.directory


def test_a_model_replaced_at_the_same_path_is_another_model(desk: Desk) -> None:
    bench, before = evaluate.open_bench(desk, "tasks.jsonl"), evaluate.contestant(desk, "base")
    evaluate.generate(desk, bench, before)
    weights = desk.project.root / "base" / "model.safetensors"
    changed = {name: tensor * 1.5 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    after = evaluate.contestant(desk_of(desk.project.root / "codetune.yaml"), "base")
    assert after.digest != before.digest
    with pytest.raises(StaleError, match="codetune generate tasks"):
        evaluate.sanitize(desk, bench, after)
    assert evaluate.generate(desk, bench, after).reused == 0


def test_a_model_that_nothing_tells_how_to_prompt_must_be_said(desk: Desk) -> None:
    shutil.copytree(desk.project.root / "base", desk.project.root / "other")
    bench = evaluate.open_bench(desk, "tasks.jsonl")
    with pytest.raises(UsageError, match="--instruct or --base"):
        evaluate.generate(desk, bench, evaluate.contestant(desk, "other"))
    said = desk_of(desk.project.root / "codetune.yaml", generate__prompt="completion")
    found = evaluate.contestant(said, "other")
    assert found.kind == "completion"
    assert found.label == f"other-{found.digest[:8]}"
    evaluate.generate(said, bench, found)
    # What was said to generate need not be said again.
    assert evaluate.sanitize(desk, bench, evaluate.contestant(desk, "other")).rows == 3


def test_a_setting_by_flag_of_generate_makes_nothing_stale_and_an_edited_file_is_told(desk: Desk) -> None:
    bench = evaluate.open_bench(desk, "tasks.jsonl")
    flagged = desk_of(desk.project.root / "codetune.yaml", generate__max_new_tokens=3)
    completions = evaluate.generate(flagged, bench, evaluate.contestant(flagged, "base")).artefact
    base = evaluate.contestant(desk, "base")
    assert evaluate.sanitize(desk, bench, base).rows == 3
    assert evaluate.generate(desk, bench, base).reused == 0
    evaluate.sanitize(desk, bench, base)
    with completions.open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(StaleError, match=r"was changed after codetune wrote it\. Run: codetune generate"):
        evaluate.sanitize(desk, bench, base)


def test_hidden_files_have_a_name_too(desk: Desk) -> None:
    root = desk.project.root
    shutil.copy(root / "tasks.jsonl", root / ".tasks.jsonl")
    bench = evaluate.open_bench(desk, ".tasks.jsonl")
    assert bench.name == "tasks"
    report = evaluate.evaluate_file(desk, bench, samples(desk, GOOD, ".mine.jsonl"))
    assert report["model"].startswith("mine-")


def test_evaluating_before_generating_names_the_command(desk: Desk) -> None:
    bench, base = evaluate.open_bench(desk, "tasks.jsonl"), evaluate.contestant(desk, "base")
    with pytest.raises(StaleError, match=r"Run: codetune generate tasks\.jsonl --model base"):
        evaluate.evaluate(desk, bench, base, bench)


def test_a_samples_file_is_sanitized_for_the_benchmark_that_its_tasks_tell(desk: Desk) -> None:
    fenced = [{**row, "solution": f"Sure!\n```python\n{row['solution']}```\nDone."} for row in GOOD]
    path = samples(desk, fenced, "chat.jsonl")
    assert evaluate.is_samples_file(desk, str(path))
    result = evaluate.sanitize_file(desk, path)
    assert (result.facts["changed"], result.facts["not_parsing"]) == (3, 0)
    assert result.artefact.parent.name == "tasks"
    tasks = desk.project.root / "tasks.jsonl"
    assert not evaluate.is_samples_file(desk, str(tasks))
    packed = tasks.with_name("packed.jsonl.gz")
    packed.write_bytes(gzip.compress(tasks.read_bytes()))
    assert not evaluate.is_samples_file(desk, str(packed))
    with_prompts = samples(desk, [{**row, "prompt": "Write it."} for row in GOOD], "prompts.jsonl")
    assert evaluate.is_samples_file(desk, str(with_prompts))


def test_samples_for_the_demo_are_known_by_their_tasks(desk: Desk) -> None:
    path = samples(desk, [{"task_id": "Demo/0", "solution": "x = 1"}], "demo.jsonl")
    assert evaluate.sanitize_file(desk, path).rows == 1


def test_a_samples_file_that_is_not_there_is_told(desk: Desk) -> None:
    with pytest.raises(DataError, match=r"no file .*nowhere\.jsonl"):
        evaluate.evaluate_file(desk, evaluate.open_bench(desk, "tasks.jsonl"), Path("nowhere.jsonl"))


def test_a_part_of_the_tasks_has_artefacts_of_its_own(desk: Desk) -> None:
    bench = evaluate.open_bench(desk, "tasks.jsonl")
    path = samples(desk, GOOD)
    whole = evaluate.evaluate_file(desk, bench, path)
    first = evaluate.evaluate_file(desk, evaluate.part_of(bench, 1, [], complete=True), path)
    named = evaluate.evaluate_file(desk, evaluate.part_of(bench, None, ["Small/2"], complete=True), path)
    assert [list(report["verdicts"]) for report in (first, named)] == [["Small/0"], ["Small/2"]]
    assert [(report["benchmark"], report["tasks_in_benchmark"]) for report in (first, named)] == [("tasks", 3)] * 2
    assert evaluate.evaluate_file(desk, bench, path) == json.loads(json.dumps(whole))
    assert evaluate.part_of(bench, 3, [], complete=False) == bench


def test_a_part_is_judged_by_the_solutions_of_the_whole(desk: Desk) -> None:
    bench, base = evaluate.open_bench(desk, "tasks.jsonl"), evaluate.contestant(desk, "base")
    evaluate.generate(desk, bench, base)
    evaluate.sanitize(desk, bench, base)
    part = evaluate.part_of(bench, None, ["Small/1"], complete=False)
    assert list(evaluate.evaluate(desk, bench, base, part)["verdicts"]) == ["Small/1"]


def test_a_task_that_the_benchmark_has_not_is_told_with_the_nearest(desk: Desk) -> None:
    bench = evaluate.open_bench(desk, "tasks.jsonl")
    with pytest.raises(UsageError, match=r"--task Small/7: .*did you mean Small/"):
        evaluate.part_of(bench, None, ["Small/7"], complete=False)


def test_where_samples_must_be_complete_a_missing_one_is_an_error(desk: Desk) -> None:
    bench = evaluate.part_of(evaluate.open_bench(desk, "tasks.jsonl"), None, [], complete=True)
    with pytest.raises(DataError, match=r"2 of the 3 tasks of tasks: Small/1 is the first without"):
        evaluate.evaluate_file(desk, bench, samples(desk, [GOOD[0], GOOD[2]]))


def test_without_a_sandbox_the_user_is_warned_and_the_result_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = desk_of(make_small_world(tmp_path, 6), evaluate__sandbox="none")
    assert judged(desk, GOOD)["sandbox"] == "none"
    assert "without a sandbox" in capsys.readouterr().err


def test_a_sandbox_that_does_not_work_stops_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(make_small_world(tmp_path, 6), evaluate__sandbox="bubblewrap")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CodetuneError, match="No sandbox works here"):
        judged(desk, GOOD)
