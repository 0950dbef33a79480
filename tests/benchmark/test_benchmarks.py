from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from evalplus.data.humaneval import HUMANEVAL_PLUS_VERSION
from evalplus.data.mbpp import MBPP_PLUS_VERSION

from codetune.benchmark import benchmarks
from codetune.benchmark.benchmarks import (
    BENCHMARKS,
    BenchmarkSpec,
    EvalPlusDownload,
    HubFile,
    artefact_name,
    benchmark_at_hand,
    benchmark_digest,
    instruction,
    locate_benchmark,
    open_benchmark,
    output_rule,
    problem_digest,
    read_problems,
    spec_named,
    spec_of,
    stop_strings,
)
from codetune.benchmark.judge import judge
from codetune.benchmark.output_match import HUMANEVAL_RULES, MBPP_RULES, OutputRule
from codetune.errors import DataError, UsageError
from codetune.project.sections import Evaluation
from codetune.records import Solution
from tests.benchmark.published import ALL_FORMATS
from tests.benchmark.tasks import PROMPT, ROW, problem, write_rows

COMMIT = "0" * 40


def found(reference: str, project_path: Path = Path("nowhere")) -> Path:
    return locate_benchmark(reference, project_path, lambda: Path("demo-tasks.jsonl"))


def test_the_override_variables_of_evalplus_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "humaneval.jsonl", ROW)
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(path))
    assert found("humaneval") == path
    assert read_problems(path) == [problem()]
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match=r"MBPP_OVERRIDE_PATH names .*nowhere.jsonl"):
        found("mbpp")


def test_a_path_is_looked_up_beside_the_project_file_first(tmp_path: Path) -> None:
    beside, other = (write_rows(tmp_path / name, ROW) for name in ("beside.jsonl", "other.jsonl"))
    assert found(str(other), beside) == beside
    assert found(str(other)) == other
    assert found("demo") == Path("demo-tasks.jsonl")


def test_a_misspelt_benchmark_is_told_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no benchmark 'humanevl' .did you mean humaneval"):
        found("humanevl")
    with pytest.raises(UsageError, match=r"no file 'tasks.jsonl'. Expected: humaneval, mbpp, .*, demo, or the path"):
        found("tasks.jsonl")


def test_the_table_asks_for_the_versions_that_evalplus_asks_for() -> None:
    versions = [spec.source.version for spec in BENCHMARKS if isinstance(spec.source, EvalPlusDownload)]
    assert versions == [HUMANEVAL_PLUS_VERSION, MBPP_PLUS_VERSION]


@pytest.mark.parametrize("spec", BENCHMARKS, ids=lambda spec: spec.name)
def test_every_benchmark_is_named_in_the_documentation_of_the_project_file(spec: BenchmarkSpec) -> None:
    assert spec.name in (Evaluation.model_fields["benchmarks"].description or "")


def test_the_digest_follows_every_part_of_a_task_and_their_order() -> None:
    one, other = problem(), problem(plus_input=[[5]])
    assert problem_digest(one) != problem_digest(other)
    assert benchmark_digest([one, other]) != benchmark_digest([other, one])
    assert problem_digest(problem(base_input=[[{"b", "a"}]])) == problem_digest(problem(base_input=[[{"a", "b"}]]))


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_published_file_is_taken_from_its_variable_or_from_the_cache_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_named(name)
    assert spec is not None
    assert isinstance(spec.source, HubFile)
    here = partial(benchmark_at_hand, name, Path("nowhere"), lambda: Path("demo-tasks.jsonl"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert here() is None
    repository = tmp_path / f"datasets--{spec.source.repository.replace('/', '--')}"
    cached = repository / "snapshots" / COMMIT / spec.source.pattern.replace("*", "0")
    cached.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    with pytest.raises(DataError, match=f"has no file .*{spec.source.variable}"):
        found(name)
    assert here() is None  # so that `eval all` names it, and does the others
    cached.write_bytes(b"{}")
    assert here() == found(name) == cached
    own = write_rows(tmp_path / "own.jsonl", ALL_FORMATS[name])
    monkeypatch.setenv(spec.source.variable, str(own))
    assert here() == found(name) == own


def test_special_rules_follow_the_task_not_the_file() -> None:
    specs = [spec_of(task_id) for task_id in ("HumanEval/3", "Mbpp/2", "Demo/1", "Own/HumanEval/3")]
    assert [spec.name for spec in specs] == ["humaneval", "mbpp", "demo", ""]
    assert output_rule(problem(task_id="HumanEval/32", entry_point="find_zero")) == HUMANEVAL_RULES["find_zero"]
    assert output_rule(problem(task_id="Mbpp/295", entry_point="sum_div")) == MBPP_RULES["sum_div"]
    assert output_rule(problem(task_id="HumanEval/3", entry_point="sum_div")) == OutputRule()
    assert output_rule(problem(task_id="Own/32", entry_point="find_zero")) == OutputRule()


def test_artefacts_of_a_users_file_never_have_the_name_of_a_known_benchmark() -> None:
    assert artefact_name("humaneval", lambda: "0123456789") == "humaneval"
    assert artefact_name("own/.tasks.jsonl.gz", lambda: "0123456789") == "tasks"
    assert artefact_name("own/humaneval.jsonl", lambda: "0123456789") == "humaneval-01234567"
    assert artefact_name("own/humaneval.jsonl", lambda: None) == "humaneval"


def test_stops_follow_whether_the_prompt_has_begun_the_function(shared_data: Path) -> None:
    files = ("HumanEvalPlus-v0.1.10.jsonl.gz", "MbppPlus-v0.2.0.jsonl.gz")
    human, mbpp = (read_problems(shared_data / "benchmarks" / file) for file in files)
    assert all("\ndef " in stop_strings(task) and '\n"""' not in stop_strings(task) for task in human)
    assert all("\ndef " not in stop_strings(task) and '\n"""' in stop_strings(task) for task in mbpp)


def _twice_the_arguments(task_id: str, inputs: list[list[object]]) -> list[list[object]]:
    assert task_id == "Twice/0"
    return [call * 2 for call in inputs]


def test_a_benchmark_in_evalplus_format_is_one_record(
    tmp_path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = BenchmarkSpec(
        name="twice",
        task_prefix="Twice/",
        source=EvalPlusDownload("TWICE_OVERRIDE_PATH", "Twice", "v1"),
        output_rules={"double": MBPP_RULES["are_equivalent"]},  # anything that is returned
        rebuild_inputs=_twice_the_arguments,
        stop_strings=lambda _: ("\nEND",),
        instruction=lambda task: f"Double: {task.prompt}",
    )
    monkeypatch.setattr(benchmarks, "BENCHMARKS", (*BENCHMARKS, added))
    row = ROW | {"task_id": "Twice/0", "prompt": "def double(x, y):\n", "canonical_solution": "    return x + y\n"}
    monkeypatch.setenv("TWICE_OVERRIDE_PATH", str(write_rows(tmp_path / "twice.jsonl", row)))
    [task] = open_benchmark("twice", found("twice"), artefact_name("twice", lambda: None)).problems
    assert task.base_input == [[1, 1], [2, 2]]
    assert spec_of(task.task_id).stop_strings(task) == ("\nEND",)
    assert spec_of(task.task_id).instruction(task).startswith("Double: def")
    solutions = [
        Solution("Twice/0", f"def double(x, y): return {value}", sample) for sample, value in enumerate(("0", "1 / 0"))
    ]
    assert [verdict.plus for verdict in judge([task], solutions, expected, 1, "none")] == ["pass", "fail"]


def test_a_task_without_a_record_is_asked_for_like_all_others() -> None:
    assert spec_of("Own/0").instruction(problem()) == instruction(problem())
    assert PROMPT.strip() in instruction(problem())
    assert spec_named("") is None
