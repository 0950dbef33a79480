"""YAML 1.2's core schema by hand-worked examples, the line of every key, and files that are no project file at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.errors import ProjectError
from codetune.project.yaml import ParsedYaml, read_file, read_text_value, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("5.0e-5", 5e-5),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("012", 12),  # YAML 1.1 reads an octal 10
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_a_plain_word_is_what_the_core_schema_says(text: str, value: Any) -> None:
    found = value_of(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text", ["no", "No", "yes", "on", "off", "y", "1:30", "1_000", "0x10", "0b1", "2024-01-31", ".inf", ".nan", "e5"]
)
def test_what_only_yaml_1_1_takes_for_something_else_is_text(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize("text", ['"5e-5"', "'5e-5'"])
def test_quotes_make_text(text: str) -> None:
    assert value_of(text) == "5e-5"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_as_python_writes_it(number: float) -> None:
    assert value_of(repr(number)) == number


@given(st.integers())
def test_every_whole_number_is_read_as_python_writes_it(number: int) -> None:
    assert value_of(str(number)) == number


def test_every_key_and_item_has_the_line_it_stands_in(tmp_path: Path) -> None:
    path = written(tmp_path, "# a comment\nseed: 1\ntrain:\n  lora:\n    r: 2\nk:\n  - 1\n  - 2\n")
    assert read_file(path).locations == {
        (): f"{path}:2",
        ("seed",): f"{path}:2",
        ("train",): f"{path}:3",
        ("train", "lora"): f"{path}:4",
        ("train", "lora", "r"): f"{path}:5",
        ("k",): f"{path}:6",
        ("k", 0): f"{path}:7",
        ("k", 1): f"{path}:8",
    }


def test_of_a_duplicate_key_the_first_is_kept_and_both_lines_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\nname: a\nseed: 2\ntrain:\n  lora: {r: 1, r: 2}\n")
    parsed = read_file(path)
    assert parsed.data == {"seed": 1, "name": "a", "train": {"lora": {"r": 1}}}
    assert parsed.mistakes == [
        f"{path}:3: duplicate key seed; the first is at line 1. Keep one of them",
        f"{path}:5: duplicate key train.lora.r; the first is at line 5. Keep one of them",
    ]


@pytest.mark.parametrize("key", ["[a, b]", "{a: 1}", "? [a]\n"])
def test_a_key_that_is_no_text_is_a_mistake_told_as_it_is_written(key: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"seed: 1\n{key}: 2\n")
    parsed = read_file(path)
    assert parsed.data == {"seed": 1}
    (mistake,) = parsed.mistakes
    assert mistake.startswith(f"{path}:2: a key that is not text")


@pytest.mark.parametrize("level", [12, 15_000])
@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_what_is_nested_deep_is_refused(opening: str, level: int, tmp_path: Path) -> None:
    path = written(tmp_path, f"seed: 1\na: {opening * level}")
    with pytest.raises(ProjectError, match=":2: nested too deep"):
        read_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &limit 2048\n",
        "a: *limit\n",
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "&a a: 1\n",
        "<<: *a\n",
        "&a {b: 1}\n",
    ],
)
def test_an_anchor_or_alias_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"# a comment\n{text}")
    with pytest.raises(ProjectError, match="an anchor") as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_aliases_that_stand_for_gigabytes_are_refused_before_they_are_followed(tmp_path: Path) -> None:
    lists = "".join(
        f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(ProjectError, match=":1: an anchor"):
        read_file(written(tmp_path, f"a: &a [x]\n{lists}"))


def test_a_file_that_is_too_large_is_refused_with_its_size(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="has 70,001 bytes; expected at most 65,536"):
        read_file(written(tmp_path, "#" * 70_000 + "\n"))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "codetune.yaml")
    with pytest.raises(ProjectError, match="is a named pipe"):
        read_file(tmp_path / "codetune.yaml")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n\n"])
def test_an_empty_file_is_an_empty_mapping(text: str, tmp_path: Path) -> None:
    parsed = read_file(written(tmp_path, text))
    assert (parsed.data, parsed.mistakes) == ({}, [])


@pytest.mark.parametrize("text", ["- a\n- b\n", "only words\n", "[1, 2]\n", "3\n"])
def test_what_is_no_mapping_is_refused_with_how_to_get_one(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ProjectError, match="codetune init") as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}:1: holds no `key: value` lines")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train:\n\tepochs: 1\n", 2),  # a tab
        ("seed: 1\nname: [a\nb: 2\n", 3),  # a bracket left open
        ("seed: a: b\n", 1),
        ("seed: 1\n---\nseed: 2\n", 2),  # a second document
        ('name: "a\n', 2),  # a quote left open
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ProjectError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}:{line}: not YAML: ")


def test_a_control_character_is_told_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a\x00b\n")
    with pytest.raises(ProjectError, match="not YAML: unacceptable character #x0000") as error:
        read_file(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "project.yaml"
    path.write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(ProjectError, match="not UTF-8 at byte 9"):
        read_file(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_file(written(tmp_path, "\ufeffseed: 1\n")).data == {"seed": 1}


def test_a_file_that_is_missing_is_told_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="Write one: codetune init"):
        read_file(tmp_path / "codetune.yaml")


def test_a_directory_is_told_with_the_file_that_was_expected_in_it(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="is a directory; expected a project file"):
        read_file(tmp_path)


def test_a_path_through_a_file_is_an_error_of_the_path(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="a part of this path is a file"):
        read_file(written(tmp_path, "seed: 1\n") / "codetune.yaml")


def test_a_path_that_the_system_refuses_is_an_error_of_the_path(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="cannot be read: "):
        read_file(tmp_path / ("a" * 5000))


@pytest.mark.parametrize("text", ["!!int abc", "!!binary aGk=", "!mine word", "9" * 5000])
def test_a_value_that_is_not_what_it_claims_is_one_short_mistake(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"name: a\nseed: {text}\n")
    (mistake,) = read_file(path).mistakes
    assert mistake.startswith(f"{path}:2: cannot read '")
    assert len(mistake) < len(str(path)) + 150


def test_a_rare_character_may_be_escaped_as_json_does(tmp_path: Path) -> None:
    assert read_file(written(tmp_path, '{"name": "\\ud83d\\ude00"}')).data == {"name": "\U0001f600"}


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, 'seed: 1\nname: "a\\ud800"\n"\\udfff": 1\n')
    assert [mistake.partition(" ")[0] for mistake in read_file(path).mistakes] == [f"{path}:2:", f"{path}:3:"]


def test_a_python_object_is_not_made(tmp_path: Path) -> None:
    mark = tmp_path / "made"
    path = written(tmp_path, f"name: !!python/object/apply:os.mkdir ['{mark}']\n")
    read_file(path)
    assert not mark.exists()


@pytest.mark.parametrize("text", ["[a", "{a: b", "a: b: c", "one\n---\ntwo"])
def test_a_single_value_that_is_no_yaml_is_noted_with_its_place(text: str) -> None:
    parsed = ParsedYaml()
    assert read_value(text, f"--set name={text}", parsed) is None
    (mistake,) = parsed.mistakes
    assert mistake.startswith(f"--set name={text}: not a YAML value")


@pytest.mark.parametrize(
    ("text", "fault"),
    [("&a 1", "an anchor"), ("*a", "an anchor"), ("[" * 5000, "nested too deep"), ("1" * 70_000, "70,000 characters")],
)
def test_a_single_value_that_is_refused_is_noted_with_its_place(text: str, fault: str) -> None:
    parsed = ParsedYaml()
    assert read_value(text, "--set seed", parsed) is None
    (mistake,) = parsed.mistakes
    assert mistake.startswith(f"--set seed: {fault}")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("Q:", "Q:"),
        ("1", "1"),
        ("no", "no"),
        ("null", "null"),
        ("~", "~"),
        ("", ""),
        ("a # b", "a # b"),
        ("a: b", "a: b"),
        ("{a: b}", "{a: b}"),
        ("[a", "[a"),
        ("[a]", "[a]"),
        ("- a", "- a"),
        ("*.jsonl", "*.jsonl"),
        ("&a", "&a"),
        ("!!int x", "!!int x"),
        (" a\n", " a\n"),
        ('"a" or "b"', '"a" or "b"'),
        ("it's", "it's"),
        ('"a\\n\\u00e9"', "a\n\u00e9"),
        ("'it''s'", "it's"),
        ('"12"', "12"),
        ("one\n---\ntwo", "one\n---\ntwo"),
    ],
)
def test_a_value_of_a_key_for_text_is_the_text_as_it_was_typed(typed: str, value: str) -> None:
    parsed = ParsedYaml()
    assert read_text_value(typed, "--set a.b", parsed, or_null=False, or_list=False) == value
    assert not parsed.mistakes


@pytest.mark.parametrize("typed", ["", "null", "~"])
def test_a_text_that_may_be_absent_is_absent_by_null_or_by_nothing(typed: str) -> None:
    assert read_text_value(typed, "--set a.b", ParsedYaml(), or_null=True, or_list=False) is None
    assert read_text_value('"null"', "--set a.b", ParsedYaml(), or_null=True, or_list=False) == "null"


@pytest.mark.parametrize(
    ("typed", "value"), [("[a, b]", ["a", "b"]), ("a, b", "a, b"), ("[a", "[a"), ("a: b", "a: b"), ("[]", [])]
)
def test_where_a_list_is_possible_a_list_is_a_list(typed: str, value: object) -> None:
    assert read_text_value(typed, "--set a.b", ParsedYaml(), or_null=False, or_list=True) == value


@pytest.mark.parametrize("typed", ["a\udcff", '"\\ud800"'])
def test_a_text_as_typed_that_is_no_text_is_a_mistake(typed: str) -> None:
    parsed = ParsedYaml()
    read_text_value(typed, "--set a.b", parsed, or_null=False, or_list=False)
    assert len(parsed.mistakes) == 1


def test_a_duplicate_key_in_a_single_value_is_noted_with_its_place() -> None:
    parsed = ParsedYaml()
    read_value("{epochs: 1, epochs: 2}", "--set train=...", parsed)
    assert parsed.mistakes == ["--set train=...: duplicate key epochs. Keep one of them"]


def test_a_single_value_leaves_the_locations_of_the_file_alone() -> None:
    parsed = ParsedYaml(locations={("epochs",): "file:1"})
    assert read_value("{epochs: 1}", "--set train={epochs: 1}", parsed) == {"epochs": 1}
    assert parsed.locations == {("epochs",): "file:1"}


def value_of(text: str) -> Any:
    parsed = ParsedYaml()
    value = read_value(text, "--set a.b", parsed)
    assert not parsed.mistakes
    return value


def written(directory: Path, text: str) -> Path:
    path = directory / "project.yaml"
    path.write_text(text, encoding="utf-8")
    return path
