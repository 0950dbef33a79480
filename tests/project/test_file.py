"""The project file: all mistakes at once, each with its location, what was expected and the nearest name; what
overrides what; and that `codetune init` writes what is read again."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.errors import InputError, ProjectError
from codetune.project.file import commented_yaml, read_project, write_project
from codetune.project.keys import choices, keys, value_at
from codetune.project.presets import PRESETS
from codetune.project.sections import Project, StageName

KEYS = dict(keys())


def test_all_mistakes_are_reported_at_once_each_in_a_line_of_its_own(tmp_path: Path) -> None:
    text = (
        "seed: -1\n"
        "select:\n"
        "  ratio: 1.4\n"
        "  ratio: 0.4\n"
        "  strategi: all\n"
        "train: {epochs: three}\n"
        "score: {prompt: Question}\n"
        "launch: 4\n"
    )
    told = mistakes(tmp_path, text, ["generate.temperature=-1", "ratio", "=3"], {"select.clusters": 0})
    assert sorted(told) == sorted(
        [
            "codetune.yaml:4: duplicate key select.ratio; the first is at line 3. Keep one of them",
            "--set ratio: no `=`; expected --set section.key=value",
            "--set =3: no key before the `=`; expected --set section.key=value",
            "codetune.yaml:1: seed is -1; expected greater than or equal to 0 (seed of everything random)",
            "--clusters: select.clusters is 0; expected greater than or equal to 1 or `auto` "
            "(number of clusters of K-means; auto: the number that fits the rows best)",
            "codetune.yaml:3: select.ratio is 1.4; expected less than or equal to 1 "
            "(share of the eligible rows to take: floor(n * ratio) in each cluster)",
            "codetune.yaml:5: select.strategi: unknown key; did you mean strategy?",
            "codetune.yaml:6: train.epochs is 'three'; expected a valid integer (passes over the selection)",
            "codetune.yaml:8: launch is 4; expected a section with keys of its own",
            "--set generate.temperature=-1: generate.temperature is -1; expected greater than or equal to 0 "
            "(0 is greedy)",
            "codetune.yaml:7: score.prompt: holds no {instruction}; expected a text that contains it, "
            "such as 'Question:\\n{instruction}\\n'",
        ]
    )


def test_each_mistake_in_a_list_of_data_sets_names_the_data_set_and_the_key(tmp_path: Path) -> None:
    text = (
        "dataset:\n"
        "  - {name: a, path: a.jsonl, weight: 0}\n"
        "  - {name: b, path: b.jsonl, wieght: 1}\n"
        "  - {name: c, path: c.jsonl, weight: -0.5}\n"
        "  - 3\n"
    )
    described = "(share of its rows that are taken, the first by their ids)"
    assert mistakes(tmp_path, text) == [
        f"codetune.yaml:2: dataset.0.weight is 0; expected greater than 0 {described}",
        "codetune.yaml:3: dataset.1.wieght: unknown key; did you mean weight?",
        f"codetune.yaml:4: dataset.2.weight is -0.5; expected greater than 0 {described}",
        "codetune.yaml:5: dataset.3 is 3; expected a section with keys of its own",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dataset: []\n", "codetune.yaml:1: dataset is []; expected at least one item"),
        ("dataset: 3\n", "codetune.yaml:1: dataset is 3; expected a section with keys of its own"),
        ("dataset:\n  - {name: a, path: x, weight: 2}\n", "codetune.yaml:2: dataset.0.weight is 2; expected less than"),
        ("dataset:\n  - {path: x}\n", "codetune.yaml:2: dataset.0.name: not set. Give each data set a name"),
        ("dataset:\n  - {name: x}\n", "codetune.yaml:2: dataset.0.path: not set. Name a file"),
        (
            "dataset:\n  - {name: a, path: x}\n  - {name: a, path: y}\n",
            "codetune.yaml:3: dataset.1.name: a is the name of another data set",
        ),
        ("dataset: {path: x, weight: 0.5}\n", "codetune.yaml:1: dataset.weight: unknown key"),
    ],
)
def test_a_list_of_data_sets_needs_paths_names_of_their_own_and_weights_up_to_one(
    text: str, told: str, tmp_path: Path
) -> None:
    (found,) = mistakes(tmp_path, text)
    assert found.startswith(told)


def test_a_list_of_data_sets_is_read_and_written_and_changed_as_a_whole(tmp_path: Path) -> None:
    text = "dataset:\n  - {name: a, path: a.jsonl, weight: 0.5}\n  - {name: b, path: b.jsonl, instruction: q}\n"
    project = read(tmp_path, text)
    assert [(one.path, one.instruction) for one in project.datasets] == [("a.jsonl", None), ("b.jsonl", "q")]
    assert Project.model_validate_json(project.model_dump_json()).datasets == project.datasets
    changed = read(tmp_path, text, ["dataset=[{name: c, path: c.jsonl}]"])
    assert value_at(changed, "dataset.path") == ["c.jsonl"]
    told = mistakes(tmp_path, text, ["dataset.path=c.jsonl"])
    assert told == [
        "--set dataset.path=c.jsonl: dataset is a list of sections; change the one that you mean in the file"
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("select: {rati: 0.2}", "select.rati: unknown key; did you mean ratio?"),
        ("trian: {epochs: 1}", "trian: unknown key; did you mean train?"),
        ("train: {lora: {alfa: 1}}", "train.lora.alfa: unknown key; did you mean alpha?"),
        ("ratio: 0.2", "ratio: unknown key; did you mean select.ratio?"),
        ("train: {ratio: 0.2}", "train.ratio: unknown key; did you mean select.ratio?"),
        ("max_length: 5", "max_length: unknown key; did you mean score.max_length or train.max_length?"),
        ("train: {bits: 8}", "train.bits: unknown key; did you mean train.quantization.bits?"),
        ("embed: {zzz: 1}", "embed.zzz: unknown key; expected one of: batch_size, model"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_name(text: str, hint: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path, text) == [f"codetune.yaml:1: {hint}"]


@settings(deadline=None)
@given(st.sampled_from(sorted(KEYS)), st.data())
def test_a_key_with_one_letter_missing_finds_its_name_again(key: str, data: st.DataObject) -> None:
    section, _, name = key.rpartition(".")
    if len(name) < 5:
        return
    at = data.draw(st.integers(0, len(name) - 1))
    typo = f"{name[:at]}{name[at + 1 :]}"
    if f"{section}.{typo}" in KEYS or any(known.rpartition(".")[2] == typo for known in KEYS):
        return
    dotted = f"{section}.{typo}" if section else typo
    with pytest.raises(ProjectError) as error:
        read_project(None, [f"{dotted}=1"], {})
    assert f"did you mean {name}?" in str(error.value)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("evaluate:\n  k:\n    - 1\n    - 0\n", 4, "evaluate.k.1"),
        ("evaluate:\n  k: [1,\n     two]\n", 3, "evaluate.k.1"),
        ("train:\n  lora:\n    target_modules:\n      - q\n      - 3\n", 3, "train.lora.target_modules"),
        ("# x\n\ntrain:\n\n  lora:\n    # y\n    r: 0\n", 7, "train.lora.r"),
        ("model:\n  dtype: int8\n", 2, "model.dtype"),
        ("train:\n", 1, "train"),
    ],
)
def test_a_mistake_has_the_line_of_what_is_wrong(text: str, line: int, key: str, tmp_path: Path) -> None:
    (told,) = mistakes(tmp_path, text)
    assert told.startswith(f"codetune.yaml:{line}: {key} is ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochs: 3.0}", "a valid integer"),
        ("train: {tf32: no}", "a valid boolean"),
        ("train: {tf32: 1}", "a valid boolean"),
        ("train: {learning_rate: fast}", "a valid number"),
        ("train: {learning_rate: 1e999}", "a finite number"),
        ("train: {learning_rate: .nan}", "a valid number"),
        ("train: {epochs: 1_000}", "a valid integer"),
        ("name: 12", "a valid string"),
        ("name: null", "a valid string"),
        ("select: {ratio: true}", "a valid number"),
        ("score: {tokens_per_batch: many}", "a valid integer or `auto`"),
        ("score: {tokens_per_batch: 0}", "greater than or equal to 1 or `auto`"),
        ("train: {lora: {target_modules: []}}", "a valid string or at least one item"),
        ("train: {max_length: 1}", "greater than or equal to 2"),
        ("train: {too_long: keep}", "`truncate` or `drop`"),
        ("seed: 4294967296", "less than or equal to 4294967295"),
        ("evaluate: {benchmarks: []}", "at least one item"),
        ("train: {holdout: -1}", "greater than or equal to 0 or greater than 0"),
        ("train: {holdout: 1.0}", "a valid integer or less than 1"),
        ("train: {keep_best: bleu}", "`loss` or `pass@1` (the weights that are kept"),
    ],
)
def test_a_wrong_value_is_reported_with_what_was_expected(text: str, expected: str, tmp_path: Path) -> None:
    (told,) = mistakes(tmp_path, text)
    assert f"; expected {expected}" in told


def test_numbers_are_what_the_core_schema_says(tmp_path: Path) -> None:
    project = read(tmp_path, "train: {learning_rate: 5e-5, epochs: 012}\nname: no\n")
    assert (project.train.learning_rate, project.train.epochs, project.name) == (5e-5, 12, "no")


def test_a_whole_number_will_do_for_a_measure(tmp_path: Path) -> None:
    assert read(tmp_path, "select: {ratio: 1}\n").select.ratio == 1.0


@pytest.mark.parametrize("processes", [1, 8, "auto"])
def test_processes_are_a_number_or_auto(processes: object, tmp_path: Path) -> None:
    assert read(tmp_path, f"launch: {{processes: {processes}}}").launch.processes == processes


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("score: {prompt: 'no place for it'}", "score.prompt"),
        ("{score: {token_differences: false}, select: {strategy: sifd}}", "score.token_differences"),
        ("train: {save_minutes: null}", "train.save_steps"),
        ("model: {dtype: float16}", "model.dtype"),
        ("select: {strategy: all, count: 5}", "select.count"),
        ("generate: {samples_per_task: 5}", "generate.samples_per_task"),
        ("train: {pad_mode: dynamic_pad, pack_isolation: false}", "train.pack_isolation"),
        ("train: {method: qlora, lora: {dora: true}}", "train.lora.dora"),
        ("train: {patience: 2}", "train.patience"),
        ("train: {evaluate_steps: 5, holdout: 0}", "train.evaluate_steps"),
        ("train: {method: qlora, quantization: {bits: 8, type: fp4}}", "train.quantization.type"),
        ("train: {keep_best: pass@1}", "train.keep_best"),
        ("train: {task_count: 5}", "train.task_count"),
        ("train: {tasks: cruxeval}", "train.tasks"),
        ("train: {keep_best: pass@1, tasks: mbpp}", "train.tasks"),
        ("{train: {keep_best: pass@1, tasks: cruxeval}, launch: {strategy: zero3}}", "launch.strategy"),
    ],
)
def test_what_cannot_go_together_is_refused(text: str, key: str, tmp_path: Path) -> None:
    (told,) = mistakes(tmp_path, text)
    assert told.startswith(f"codetune.yaml:1: {key}: ")


@pytest.mark.parametrize(
    ("text", "stage", "others"),
    [
        ("score: {prompt: 'no place for it'}", "score", ["embed", "select", "train", "evaluate"]),
        ("train: {save_minutes: null}", "train", ["score", "select", "generate"]),
        ("model: {dtype: float16}", "train", ["score", "generate", "sanitize", "evaluate"]),
        ("launch: {strategy: ddp, offload: all}", "train", ["score", "generate"]),
        ("select: {strategy: all, count: 5}", "select", ["score", "embed", "train"]),
        ("generate: {samples_per_task: 5}", "generate", ["train", "sanitize", "evaluate"]),
    ],
)
def test_what_cannot_go_together_is_refused_by_the_commands_that_use_it_alone(
    text: str, stage: StageName, others: Sequence[StageName], tmp_path: Path
) -> None:
    path = tmp_path / "codetune.yaml"
    path.write_text(text, encoding="utf-8")
    read_project(path, [], {}, stages=others)
    with pytest.raises(ProjectError):
        read_project(path, [], {}, stages=[*others, stage])


def test_a_preset_is_held_against_the_assignments_to_it() -> None:
    assert PRESETS["cpu"]["train.method"] == "lora"
    read_project(None, ["model.dtype=float16"], {}, preset=PRESETS["cpu"])
    with pytest.raises(ProjectError, match="float16 cannot train"):
        read_project(None, ["model.dtype=float16", "train.method=full"], {}, preset=PRESETS["cpu"])


@pytest.mark.parametrize(
    "text",
    [
        "train: {save_minutes: null, save_steps: 5}",
        "{model: {dtype: float16}, train: {method: lora}}",
        "generate: {samples_per_task: 5, temperature: 0.2}",
        "train: {pad_mode: paper_pack, pack_isolation: false}",
        "train: {method: lora, merge: true, lora: {dora: true, rslora: true}}",
        "train: {pad_mode: dynamic_pack, pack_isolation: false, sort_in_step: true}",
        "train: {method: qlora, quantization: {bits: 8, double: false}}",
        "train: {method: lora, quantization: {bits: 8, type: fp4}}",
    ],
)
def test_what_goes_together_is_not(text: str, tmp_path: Path) -> None:
    read(tmp_path, text)


def test_what_an_assignment_makes_impossible_has_the_assignment_for_its_location() -> None:
    with pytest.raises(ProjectError, match=r"^--set train.save_minutes=null: train.save_steps: null, and so is "):
        read_project(None, ["train.save_minutes=null"], {})


def test_set_goes_over_the_file_and_a_flag_over_set(tmp_path: Path) -> None:
    text = "select: {ratio: 0.1, clusters: 2}\nseed: 1\n"
    project = read(tmp_path, text, ["select.ratio=0.2", "select.clusters=3"], {"select.ratio": 0.3})
    assert (project.select.ratio, project.select.clusters, project.seed) == (0.3, 3, 1)
    assert project.overrides == {"select.ratio": 0.3, "select.clusters": 3}


@pytest.mark.parametrize(("text", "overrides"), [("select: {count: 5}", {"select.count": None}), ("seed: 1", {})])
def test_a_flag_can_clear_what_the_file_sets(text: str, overrides: dict[str, object], tmp_path: Path) -> None:
    project = read(tmp_path, text, [], {"select.count": None})
    assert (project.select.count, project.overrides) == (None, overrides)


def test_of_two_assignments_the_last_one_counts(tmp_path: Path) -> None:
    assert read(tmp_path, "", ["seed=1", "seed=2"]).seed == 2


def test_the_file_alone_overrides_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "seed: 1\n").overrides == {}


def test_a_whole_section_by_set_overrides_each_of_its_keys(tmp_path: Path) -> None:
    project = read(tmp_path, "train: {lora: {r: 4}}\n", ["train.lora={alpha: 2}"])
    assert (project.train.lora.r, project.train.lora.alpha) == (8, 2)
    assert {key for key in project.overrides if key.startswith("train.lora.")} == set(project.overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("3 # why not", 3), ("0007", 7)],
)
def test_a_value_by_set_is_read_as_the_file_would_have_it(text: str, value: int) -> None:
    assert read_project(None, [f"seed={text}"], {}).seed == value


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("score.prompt=Q: {instruction}", "Q: {instruction}"),
        ("score.prompt={instruction} # A:", "{instruction} # A:"),
        ('score.prompt="Q:\\n{instruction}"', "Q:\n{instruction}"),
        ("name=1", "1"),
        ("name=no", "no"),
        ("dataset.path=*.jsonl", "*.jsonl"),
        ("output_dir=null", None),
        ("output_dir=", None),
        ("train.lora.target_modules=all-linear", "all-linear"),
        ("train.lora.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("evaluate.benchmarks=humaneval", ["humaneval"]),
        ("evaluate.benchmarks=my tasks: #1.jsonl", ["my tasks: #1.jsonl"]),
        ("evaluate.benchmarks=[humaneval, mbpp]", ["humaneval", "mbpp"]),
        ("evaluate.k=1", [1]),
        ("select.ratio = 0.3", 0.3),
        ("train.report_to=wandb", ["wandb"]),
        ("train.report_to=[]", []),
    ],
)
def test_a_value_by_set_is_what_its_key_takes(assignment: str, value: object) -> None:
    project = read_project(None, [assignment], {})
    assert value_at(project, assignment.partition("=")[0].strip()) == value


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("evaluate.k=0", "evaluate.k is 0; expected greater than or equal to 1 "),
        ("evaluate.k=one", "evaluate.k is 'one'; expected a valid integer "),
        ("evaluate.benchmarks=", "evaluate.benchmarks is ''; expected at least one character "),
        ("train.report_to=mlflow", "train.report_to is 'mlflow'; expected `tensorboard` or `wandb` "),
        ("name=", "name is ''; expected letters, digits, "),
        ("score.prompt=Q:", "score.prompt: holds no {instruction}; "),
        ("seed=-1", "seed is -1; "),
        ("sed=1", "sed: unknown key; did you mean seed?"),
        ("select.rati=1", "select.rati: unknown key; did you mean ratio?"),
        ("seed.deeper=1", "seed is {'deeper': 1}; "),
        ("train=3", "train is 3; expected a section with keys of its own"),
        ("seed", "no `=`; expected --set section.key=value"),
        ("train={lora: {r: 0}}", "train.lora.r is 0; "),
        (f"seed{'.a' * 3000}=1", "nested too deep; "),
    ],
)
def test_a_mistake_in_an_assignment_is_told_in_one_line_with_the_assignment_as_it_was_typed(
    assignment: str, reason: str
) -> None:
    with pytest.raises(ProjectError) as error:
        read_project(None, [assignment], {})
    assert str(error.value).startswith(f"--set {assignment}: {reason}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("evaluate: {benchmarks: humaneval}", "evaluate.benchmarks", ["humaneval"]),
        ("evaluate: {k: 5}", "evaluate.k", [5]),
        ("train: {report_to: wandb}", "train.report_to", ["wandb"]),
    ],
)
def test_one_item_is_a_list_of_one(text: str, key: str, value: object, tmp_path: Path) -> None:
    assert value_at(read(tmp_path, text), key) == value


def test_an_equals_sign_may_stand_in_a_value() -> None:
    assert read_project(None, ["dataset.path=a=b.jsonl"], {}).dataset.path == "a=b.jsonl"


@pytest.mark.parametrize("text", ["[1", "!!int x", "*nowhere"])
def test_a_value_by_set_that_cannot_be_read_is_reported_once(text: str) -> None:
    with pytest.raises(ProjectError) as error:
        read_project(None, [f"seed={text}"], {})
    assert str(error.value).count(f"--set seed={text}: ") == 1


def test_a_value_of_the_file_that_cannot_be_read_is_reported_once(tmp_path: Path) -> None:
    (told,) = mistakes(tmp_path, "seed: !!int x\n")
    assert told.startswith("codetune.yaml:1: cannot read 'x'")


@pytest.mark.parametrize(
    ("key", "value", "flag"),
    [("select.ratio", 1.4, "--ratio"), ("train.pad_mode", "none", "--pad-mode"), ("train.method", "dora", "--method")],
)
def test_a_mistake_in_a_flag_has_the_flag_for_its_location(key: str, value: Any, flag: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path, "seed: 1\n", [], {key: value})[0].startswith(f"{flag}: {key}")


def test_an_override_replaces_a_wrong_value_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, "select: {ratio: 7}\n", ["select.ratio=0.5"]).select.ratio == 0.5


def test_an_assignment_below_what_is_no_section_reports_both(tmp_path: Path) -> None:
    told = mistakes(tmp_path, "train: 3\n", ["train.epochs=1"])
    assert told == [
        "--set train.epochs=1: train is not a section",
        "codetune.yaml:1: train is 3; expected a section with keys of its own",
    ]


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_a_flag_of_bytes_that_are_no_text_is_a_mistake(text: str) -> None:
    with pytest.raises(ProjectError, match="--strategy"):
        read_project(None, [], {"select.strategy": text})


@pytest.mark.parametrize("assignment", ["n\udcff=1", "name=\udcff", 'name="\\ud800"', "name.\udcff=1"])
def test_an_assignment_of_bytes_that_are_no_text_is_a_mistake(assignment: str) -> None:
    with pytest.raises(ProjectError, match="--set"):
        read_project(None, [assignment], {})


def test_a_text_of_the_file_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    assert mistakes(tmp_path, 'seed: 1\nname: "\\ud800"\n')[0].startswith("codetune.yaml:2: ")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_an_empty_file_is_the_defaults(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text).model_dump() == Project().model_dump()


def test_without_a_file_the_project_is_at_home_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_project(None, [], {}).root == tmp_path.resolve()


def test_with_a_file_it_is_at_home_beside_it(tmp_path: Path) -> None:
    assert read(tmp_path, "").root == tmp_path.resolve()


@pytest.mark.parametrize("values", [{}, *PRESETS.values()], ids=["defaults", *PRESETS])
def test_what_init_writes_is_read_as_what_it_was_made_of(values: Mapping[str, Any], tmp_path: Path) -> None:
    project = read(tmp_path, commented_yaml(values))
    assert {key: value_at(project, key) for key in KEYS} == {key: KEYS[key].default for key in KEYS} | dict(values)


@pytest.mark.parametrize("values", [{}, *PRESETS.values()], ids=["defaults", *PRESETS])
def test_what_init_writes_has_every_key_with_its_documentation_and_its_choices_in_its_line(
    values: Mapping[str, Any],
) -> None:
    lines = commented_yaml(values).splitlines()
    documented = [line.strip() for line in lines if "  # " in line]
    assert len(documented) == len(KEYS)
    for line, (key, field) in zip(documented, KEYS.items(), strict=True):
        assert line.startswith(f"{key.rpartition('.')[2]}: ")
        documentation = line.partition("  # ")[2]
        assert documentation.startswith(str(field.description))
        named = set(re.findall(r"[\w@]+", documentation))
        assert set(map(str, choices(field))) <= named
        assert choices(field) or documentation == field.description


@pytest.mark.parametrize("values", [{}, *PRESETS.values()], ids=["defaults", *PRESETS])
def test_an_ordinary_yaml_reader_sees_text_and_truth_alike(values: Mapping[str, Any]) -> None:
    plain = yaml.safe_load(commented_yaml(values))
    for key in KEYS:
        found: Any = plain
        for part in key.split("."):
            found = found[part]
        assert found == values.get(key, KEYS[key].default), key


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_text_survives_being_written_and_read(text: str) -> None:
    project = project_of(commented_yaml({"dataset.path": text, "evaluate.benchmarks": [text, "x"]}))
    assert (project.dataset.path, project.evaluate.benchmarks) == (text, [text, "x"])


@pytest.mark.parametrize(
    "text", ["null", "True", "~", "no", "12", "1e5", "012", "a # b", "a: b", "- a", "*a", " a ", "a\n"]
)
def test_text_that_looks_like_something_else_is_still_text(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, commented_yaml({"dataset.path": text})).dataset.path == text


@settings(deadline=None, max_examples=50)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_measure_survives_being_written_and_read(number: float) -> None:
    assert project_of(commented_yaml({"train.learning_rate": number})).train.learning_rate == number


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_any_seed_survives_being_written_and_read(seed: int) -> None:
    assert project_of(commented_yaml({"seed": seed})).seed == seed


def project_of(text: str) -> Project:
    """The project of a text, by way of one file for all examples of a property."""
    with tempfile.TemporaryDirectory() as directory:
        return read(Path(directory), text)


def read(
    directory: Path, text: str, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Project:
    path = directory / "codetune.yaml"
    path.write_text(text, encoding="utf-8")
    return read_project(path, assignments, flags or {})


def mistakes(
    directory: Path, text: str, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> list[str]:
    """The lines of the error, with paths as seen from `directory`."""
    with pytest.raises(ProjectError) as error:
        read(directory, text, assignments, flags)
    return str(error.value).replace(f"{directory}/", "").splitlines()


def nested(key: str, value: Any) -> str:
    """A file with one key in it, every name in a line of its own."""
    *parents, name = key.split(".")
    lines = [f"{'  ' * depth}{parent}:" for depth, parent in enumerate(parents)]
    return "\n".join(
        [*lines, f"{'  ' * len(parents)}{name}: {yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"]
    )


def test_values_of_other_versions_are_not_among_those_expected() -> None:
    with pytest.raises(ProjectError, match=r"is 'ifd_clusters'; .* `mig`, `sifd`, `ifd`, .* `random` or `all` \("):
        read_project(None, ["select.strategy=ifd_clusters"], {})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("notes.txt", "notes.txt is a file"),
        ("notes.txt/below", "notes.txt is a file"),
        ("dangling", "dangling is a link to nothing"),
        ("a" * 300, "File name too long"),
    ],
)
def test_a_place_for_no_project_file_is_refused(name: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match=f"{found}. Expected: a directory .* codetune init DIR"):
        write_project(tmp_path / name, {})
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_project_file_is_written_once_and_into_no_link(tmp_path: Path) -> None:
    (tmp_path / "codetune.yaml").symlink_to("elsewhere.yaml")
    with pytest.raises(InputError, match=r"codetune\.yaml exists already"):
        write_project(tmp_path, {})
    assert not (tmp_path / "elsewhere.yaml").exists()
