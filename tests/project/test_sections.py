"""The sections themselves: every key is explained, bounded and read by somebody; where names are looked for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from codetune.errors import InputError
from codetune.project.file import read_project
from codetune.project.keys import free_on_resume, keys, sealing_keys, value_at
from codetune.project.presets import PRESETS
from codetune.project.sections import Project
from codetune.selection.strategies import STRATEGIES

PACKAGE = Path(__file__).resolve().parents[2] / "codetune"
KEYS = dict(keys())
SECTIONS: dict[str, str] = {
    name: type(value_of).__name__
    for name, value_of in {
        "": Project(),
        **{name: getattr(Project(), name) for name in Project.model_fields},
        "train.lora": Project().train.lora,
        "train.quantization": Project().train.quantization,
    }.items()
    if isinstance(value_of, BaseModel)
}
# Two values that mean the same until the other backends, and several processes, are there.
ONE_MEANING = ("generate.backend", "launch.processes")
# Known by the content behind them: another spelling of a path changes nothing.
NAMES = {"dataset.path", "dataset.split", "dataset.instruction", "dataset.response"}
NAMES |= {"model.path", "score.model", "embed.model", "train.tasks"}
SEALING_KEYS = {
    "score": [
        "model.dtype",
        "model.attention",
        "score.max_length",
        "score.prompt",
        "score.empty_prompt",
        "score.shuffled_rows",
        "score.token_differences",
    ],
    "embed": ["seed"],
    "holdout": [
        "seed",
        "model.chat_format",
        "model.dtype",
        "model.attention",
        "train.max_length",
        "train.too_long",
        "train.learn",
    ],
    "select": [
        "seed",
        "select.strategy",
        "select.clusters",
        "select.ratio",
        "select.count",
        "select.ratio_of",
        "select.token_share",
        "select.max_ifd",
        "select.mismatch",
        "select.mismatch_level",
        "select.deduplicate",
        "select.decontaminate",
        "select.checks",
        "select.best_answer",
        "train.holdout",
    ],
    "train": [
        "seed",
        "model.chat_format",
        "model.dtype",
        "model.attention",
        "train.method",
        "train.pad_mode",
        "train.max_length",
        "train.too_long",
        "train.learn",
        "train.epochs",
        "train.max_steps",
        "train.global_batch_size",
        "train.per_device_batch_size",
        "train.gradient_accumulation_steps",
        "train.learning_rate",
        "train.scheduler",
        "train.warmup_steps",
        "train.weight_decay",
        "train.max_grad_norm",
        "train.optimizer",
        "train.tf32",
        "train.gradient_checkpointing",
        "train.pack_isolation",
        "train.sort_in_step",
        "train.merge",
        "train.evaluate_steps",
        "train.keep_best",
        "train.patience",
        "train.objective",
        "train.lora.r",
        "train.lora.alpha",
        "train.lora.dropout",
        "train.lora.target_modules",
        "train.lora.rslora",
        "train.lora.dora",
        "train.quantization.bits",
        "train.quantization.type",
        "train.quantization.double",
    ],
    "generate": [
        "seed",
        "model.dtype",
        "generate.prompt",
        "generate.max_new_tokens",
        "generate.samples_per_task",
        "generate.temperature",
        "generate.top_p",
    ],
    "sanitize": [],
    "evaluate": ["evaluate.sandbox", "evaluate.k"],
}
# Keys that change no artefact: where it is written, how fast it is made, what is logged, and which benchmarks are run.
SEALS_NOTHING = NAMES | {
    "name",
    "output_dir",
    "score.tokens_per_batch",
    "embed.batch_size",
    "train.logging_steps",
    "train.save_minutes",
    "train.save_steps",
    "train.keep_checkpoints",
    "train.report_to",
    "train.compile",
    "train.task_count",
    "generate.batch_size",
    "generate.backend",
    "evaluate.benchmarks",
    "launch.processes",
    "launch.strategy",
    "launch.nodes",
    "launch.offload",
    "slurm.account",
    "slurm.partition",
    "slurm.gpus",
    "slurm.time",
    "slurm.shards",
    "slurm.options",
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_one_line_of_documentation(key: str) -> None:
    description = KEYS[key].description
    assert description
    assert "\n" not in description


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_makes_a_difference_is_read(key: str) -> None:
    """A module reads a key when it names the section, by its attribute or its type, and has the key as an attribute."""
    section, _, name = key.rpartition(".")
    called = section.rpartition(".")[2]
    readers = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "project"
        if name in _attributes(path)
        if not section or called in _attributes(path) or SECTIONS[section] in _attributes(path) | _names(path)
    ]
    assert readers or key in ONE_MEANING


def test_the_exceptions_to_being_read_are_keys() -> None:
    assert set(ONE_MEANING) <= set(KEYS)


def test_the_strategies_are_those_that_exist() -> None:
    assert set(_choices("select.strategy")) == set(STRATEGIES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_keys_and_differs_from_the_defaults(name: str) -> None:
    assert not [key for key, value in PRESETS[name].items() if value == KEYS[key].default]


def test_the_keys_come_in_the_order_of_the_file() -> None:
    assert list(KEYS)[:5] == ["name", "output_dir", "seed", "dataset.path", "dataset.split"]
    assert (
        list(KEYS).index("train.lora.r")
        < list(KEYS).index("train.quantization.bits")
        < list(KEYS).index("launch.nodes")
    )


@pytest.mark.parametrize("stage", SEALING_KEYS)
def test_the_keys_that_seal_the_artefact_of_a_stage_are_these(stage: str) -> None:
    assert list(sealing_keys(stage)) == SEALING_KEYS[stage]


def test_every_key_seals_an_artefact_or_is_known_to_change_none() -> None:
    assert set(KEYS) - {key for stage in SEALING_KEYS for key in sealing_keys(stage)} == SEALS_NOTHING


def test_an_unfinished_training_may_continue_with_other_values_of_these_keys_only() -> None:
    assert free_on_resume() == (
        "train.global_batch_size",
        "train.per_device_batch_size",
        "train.gradient_accumulation_steps",
        "train.gradient_checkpointing",
        "train.logging_steps",
        "train.save_minutes",
        "train.save_steps",
        "train.keep_checkpoints",
        "train.merge",
        "train.report_to",
        "train.compile",
    )


def test_a_section_cannot_be_edited() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Project().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("key", [key for key in KEYS if isinstance(KEYS[key].default, bool)])
@pytest.mark.parametrize("value", [0, 1, "no", "yes"])
def test_only_true_and_false_are_booleans(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="valid boolean"):
        Project.model_validate(_nested(key, value))


@pytest.mark.parametrize("key", [key for key in KEYS if type(KEYS[key].default) is int and key != "train.save_minutes"])
@pytest.mark.parametrize("value", [1.0, True, "1", -1])
def test_a_count_is_a_whole_number_and_never_negative(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Project.model_validate(_nested(key, value))


@pytest.mark.parametrize("key", [key for key in KEYS if type(KEYS[key].default) is float])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, True, "0.1"])
def test_a_measure_is_a_finite_number_and_never_negative(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Project.model_validate(_nested(key, value))


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "-a", "a b", "a\n", "ä"])
def test_a_name_is_safe_as_a_directory(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Project(name=name)


def test_the_run_directory_lies_beside_the_project_file(tmp_path: Path) -> None:
    assert Project(name="a").placed(tmp_path, {}).run_dir == tmp_path / "runs" / "a"
    assert Project(output_dir="out").placed(tmp_path, {}).run_dir == tmp_path / "out"
    assert Project(output_dir="/elsewhere").placed(tmp_path, {}).run_dir == Path("/elsewhere")


def test_placing_a_project_leaves_the_first_where_it_was(tmp_path: Path) -> None:
    first = Project().placed(tmp_path / "a", {"seed": 1})
    second = first.placed(tmp_path / "b", {})
    assert (first.root, second.root) == (tmp_path / "a", tmp_path / "b")
    assert (first.overrides, second.overrides) == ({"seed": 1}, {})


def test_a_relative_name_is_looked_for_beside_the_project_file_first(place: Path) -> None:
    (place / "here" / "data.jsonl").touch()
    (place / "project" / "data.jsonl").touch()
    assert _project(place).locate("data.jsonl") == str(place / "project" / "data.jsonl")


def test_a_name_that_is_only_in_the_current_directory_is_found_there(place: Path) -> None:
    (place / "here" / "data.jsonl").touch()
    assert _project(place).locate("data.jsonl") == str(place / "here" / "data.jsonl")


def test_a_name_that_is_no_path_is_left_as_it_is(place: Path) -> None:
    assert _project(place).locate("owner/model") == "owner/model"


@pytest.mark.parametrize("pattern", ["part-*.jsonl", "**/part-?.jsonl", "part-[01].jsonl", "../project/part*"])
def test_a_glob_is_looked_for_beside_the_project_file(pattern: str, place: Path) -> None:
    (place / "project" / "part-1.jsonl").touch()
    (place / "here" / "part-1.jsonl").touch()
    assert _project(place).locate(pattern) == str(place / "project" / pattern)


def test_a_glob_that_matches_nothing_is_left_as_it_is(place: Path) -> None:
    assert _project(place).locate("part-*.jsonl") == "part-*.jsonl"


def test_two_stars_inside_a_name_mean_one(place: Path) -> None:
    (place / "project" / "part-1.jsonl").touch()
    assert _project(place).locate("part**.jsonl") == str(place / "project" / "part**.jsonl")


def test_a_name_with_brackets_that_exists_is_that_file(place: Path) -> None:
    (place / "project" / "data[1].jsonl").touch()
    assert _project(place).locate("data[1].jsonl") == str(place / "project" / "data[1].jsonl")


def test_an_absolute_path_stays_what_it_is(place: Path) -> None:
    (place / "here" / "data.jsonl").touch()
    assert _project(place).locate(str(place / "here" / "data.jsonl")) == str(place / "here" / "data.jsonl")
    assert _project(place).locate(str(place / "here" / "*.jsonl")) == str(place / "here" / "*.jsonl")


@pytest.mark.parametrize("name", ["data.jsonl", "*.jsonl"])
def test_a_tilde_is_the_home_directory(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place / "here"))
    (place / "here" / "data.jsonl").touch()
    assert _project(place).locate(f"~/{name}") == str(place / "here" / name)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/data.jsonl", "a" * 5000, "*" + "a" * 5000])
def test_what_cannot_be_a_path_is_the_users_mistake(name: str, place: Path) -> None:
    with pytest.raises(InputError, match="cannot be a path"):
        _project(place).locate(name)


def test_a_value_is_found_by_its_dotted_key() -> None:
    assert value_at(Project(), "train.lora.r") == 8
    found, kinds = value_at(Project(), "train.lora"), {"rslora": False, "dora": False}
    assert found == {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": "all-linear", **kinds}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's directory, and another one that is the current one."""
    for name in ("project", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "project" / "codetune.yaml").write_text("name: a\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def _project(place: Path) -> Project:
    return read_project(place / "project" / "codetune.yaml", [], {})


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _choices(key: str) -> tuple[object, ...]:
    annotation = KEYS[key].annotation
    if annotation is bool:
        return True, False
    # Of a choice that may be null the parts are the choice and None.
    return tuple(value for part in get_args(annotation) for value in get_args(part) or (part,))


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def _attributes(path: Path) -> frozenset[str]:
    return frozenset(node.attr for node in _nodes(path) if isinstance(node, ast.Attribute))


@cache
def _names(path: Path) -> frozenset[str]:
    return frozenset(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in _nodes(path):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
