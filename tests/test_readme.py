"""What the README shows is true: its project file is read, its commands and options exist, its tree is the house."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from codetune.cli import app
from codetune.project.file import read_project
from tests.performance.record import RESULTS
from tests.performance.table import claim_table, markdown, read_claims, table

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "codetune"
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (PACKAGE / "docs" / "reference.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}(codetune .*?)(?: +#.*)?$", README, re.MULTILINE)
TARGETS = re.findall(r"^ {4}make ([a-z]+)", README, re.MULTILINE)
TREE = re.search(r"^ {4}codetune/\n((?: {4}.*\n)+)", README, re.MULTILINE)
ROOM = r"[a-z_]+(?:\.py|/)(?= )"
NO_MODULE_OF_THE_HOUSE = {"__init__.py", "__main__.py"}  # a version; a door


def test_its_project_file_is_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    path = tmp_path / "codetune.yaml"
    path.write_text(block, encoding="utf-8")
    project = read_project(path, [], {})
    assert (project.name, project.train.learning_rate) == ("evol-40", 2e-4)
    assert len(block.splitlines()) < 30


def test_its_commands_show_the_way_from_the_data_to_the_figures() -> None:
    words = [shlex.split(command)[1] for command in COMMANDS]
    assert words == ["score", "embed", "select", "train", "eval", "run", "status", "plan", "report", "doctor", "slurm"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_it_shows_is_one(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    known = commands().commands[name]
    known.make_context(name, arguments)  # parses as the command line does; a stranger is a UsageError
    flags = {flag for parameter in known.params for flag in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= flags


def test_its_table_of_mismatched_pairs_is_the_record() -> None:
    path = RESULTS / "mismatch.json"
    assert markdown(list(table(path.stem, json.loads(path.read_text(encoding="utf-8"))["figures"]))) in README


def test_its_table_of_the_claim_is_the_records() -> None:
    assert markdown(claim_table(read_claims())) in README


def test_every_option_it_tells_of_exists() -> None:
    flags = {
        flag
        for command in (commands(), *commands().commands.values())
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"--[a-z][a-z-]*", README + REFERENCE)) <= flags


def test_the_reference_has_a_section_for_every_command_that_works_on_a_project() -> None:
    aside = {"init", "demo", "status", "run", "evaluate"}  # in the README, in "Every command", or in `eval`
    assert set(re.findall(r"^## ([a-z]+)$", REFERENCE, re.MULTILINE)) == set(commands().commands) - aside


def test_the_files_that_it_links_to_exist() -> None:
    assert not [link for link in re.findall(r"\]\(([\w./-]+)\)", README) if not (ROOT / link).is_file()]


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert TARGETS
    assert set(TARGETS) <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_extras_that_it_installs_are_those_of_the_package() -> None:
    (sentence,) = re.findall(r"The\sextras may be left out.*?\.", README, re.MULTILINE | re.DOTALL)
    (installed,) = re.findall(r"`pip install '\.\[([a-z,]+)\]'`", README)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"`([a-z]+)`", sentence)) == set(extras) - {"dev"} >= set(installed.split(","))


def test_its_tree_is_the_house() -> None:
    assert TREE
    told = set(re.findall(ROOM, TREE[1]))
    rooms = {path.name for path in PACKAGE.glob("*.py")} - NO_MODULE_OF_THE_HOUSE | {"docs/"}
    assert told == rooms | {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}


def test_every_room_in_its_tree_has_a_word_of_explanation() -> None:
    assert TREE
    for line in TREE[1].splitlines():
        assert re.fullmatch(rf" {{6}}{ROOM} +\w.+?(?: {ROOM} +\w.+)?", line), line


def commands() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group
