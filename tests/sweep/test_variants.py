"""The combinations of a sweep, their names and projects; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from codetune.cli_options import numbers, require_outcome, varied_values, words
from codetune.errors import ProjectError, UsageError
from codetune.project.sections import Project
from codetune.project.variations import split_variations
from codetune.sweep.variants import Sweep, name_of

PROJECT = "dataset: {path: data.jsonl}\nmodel: {path: base}\nselect: {count: 7}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "codetune.yaml"
    file.write_text(PROJECT)
    return file


def names(file: Path, **varied: Sequence[object]) -> list[str]:
    asked = {key.replace("__", "."): values for key, values in varied.items()}
    return [variant.name for variant in Sweep(file, [], asked, 1).variants]


def test_equal_combinations_are_one_variant(file: Path) -> None:
    assert names(file, select__ratio=[0.3, 0.30], train__learning_rate=[1e-4, 0.0001]) == ["0.3-learning_rate_0.0001"]
    assert names(file, select__strategy=["mig", "all"], select__ratio=[0.1, 0.2]) == ["mig-0.1", "mig-0.2", "all"]


def test_different_values_have_different_names() -> None:
    values: list[dict[str, object]] = [
        {"model.path": "a/b"},
        {"model.path": "a_b"},
        {"score.max_length": 256},
        {"train.max_length": 256},
        {"train.max_steps": None},
        {"select.checks": []},
        {"select.checks": ["parses"]},
        {"train.tf32": True},
        {"model.path": "x" * 300},
        {"model.path": "x" * 301},
        {},
    ]
    found = [name_of(settings) for settings in values]
    assert len(set(found)) == len(values)
    assert max(map(len, found)) < 100
    assert found[2:4] == ["score.max_length_256", "train.max_length_256"]


def test_a_ratio_that_varies_takes_the_place_of_a_count_in_the_file(file: Path) -> None:
    (variant,) = Sweep(file, [], {"select.ratio": [0.3]}, 1).variants
    assert (variant.project.select.count, variant.project.select.ratio) == (None, 0.3)
    assert Sweep(file, [], {}, 1).variants[0].project.select.count == 7


def test_the_project_file_is_read_once(file: Path) -> None:
    sweep = Sweep(file, [], {"select.ratio": [0.3]}, 2)
    first = sweep.run_of(sweep.variants[0], 0)
    file.write_text(PROJECT.replace("base", "another"))
    assert sweep.run_of(sweep.variants[0], 1).project.model.path == first.project.model.path == "base"
    random = sweep.run_of(sweep.variants[0].controls["random"], 1, count=5)
    assert (random.name, random.project.select.count, random.project.seed) == ("random-count_5-seed43", 5, 43)
    assert random.project.run_dir == file.parent / "runs/default-sweep/random-count_5-seed43"


def test_the_mistakes_of_all_variants_are_told_at_once(file: Path) -> None:
    sweep = Sweep(file, [], {"select.ratio": [0.3, 2.0], "train.learning_rate": ["x", 1e-4]}, 1)
    with pytest.raises(ProjectError) as told:
        sweep.variants  # noqa: B018 - it is read from the file here
    first, second, *others = str(told.value).split("\n")
    assert first.startswith("--set train.learning_rate: train.learning_rate is 'x'")
    assert second.startswith("--ratio: select.ratio is 2.0")
    assert not others


@pytest.mark.parametrize(
    ("strategy", "ratio", "assignments", "message"),
    [
        (None, ",", [], "--ratio has no values"),
        (None, "0.1", ["select.ratio=[0.2]"], "--ratio and --set select.ratio both say select.ratio"),
        ("mig", None, ["select.strategy=ifd"], "--strategy and --set select.strategy both say"),
        (None, None, ["train.epochs=[1, 2]", "train.epochs=3"], "train.epochs=.* both say train.epochs"),
        (None, "0.1", ["select.count=5"], "select.ratio varies, and --set select.count takes its place"),
        (None, None, ["seed=[1, 2]"], "a sweep cannot vary seed"),
        (None, None, ["name=[a, b]"], "a sweep cannot vary name"),
        (None, None, ["evaluate.benchmarks=[[demo], [mbpp]]"], "a sweep cannot vary evaluate.benchmarks"),
    ],
)
def test_what_cannot_vary_is_an_error_of_usage(
    strategy: str | None, ratio: str | None, assignments: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        varied_values(strategy, ratio, *split_variations(assignments))


def test_flags_and_lists_vary_together() -> None:
    assert varied_values("ifd,mig", "0.1", *split_variations(["train.tf32=[true, false]"])) == {
        "select.strategy": ["ifd", "mig"],
        "select.ratio": [0.1],
        "train.tf32": [True, False],
    }


def test_a_list_is_several_values_unless_the_key_takes_a_list() -> None:
    fixed, varied = split_variations(
        ["train.learning_rate=[1e-4, 2e-4]", "select.checks=[parses]", "select.checks=[[], [parses]]", "name=a"]
    )
    assert fixed == ["select.checks=[parses]", "name=a"]
    assert varied == {"train.learning_rate": [1e-4, 2e-4], "select.checks": [[], ["parses"]]}
    with pytest.raises(ProjectError, match="the list has no value"):
        split_variations(["train.epochs=[]"])


def test_flags_with_several_values_are_read_and_checked() -> None:
    assert (numbers("--ratio", "0.1, 0.2"), words("ifd,mig"), words(None)) == ([0.1, 0.2], ["ifd", "mig"], [])
    with pytest.raises(UsageError, match=r"--ratio 0.1,x: expected numbers"):
        numbers("--ratio", "0.1,x")
    with pytest.raises(UsageError, match=r"train.holdout is 0\. .* Set train.holdout"):
        require_outcome(Project(), benchmarks=False)
