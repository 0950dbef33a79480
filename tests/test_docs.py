"""The documents inside of the package: in order, and true about where things are."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.command_pages import PAGES, command_pages

CONSTRAINTS = (Path(__file__).resolve().parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
PACKAGE = Path(__file__).resolve().parents[1] / "codetune"
ENTRY = re.compile(r"- \*\*(?P<word>[^*]+)\*\*: .+ \(`(?P<module>[\w/.]+)`\)")


def entries() -> list[re.Match[str]]:
    lines = (PACKAGE / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    found = [(line, ENTRY.fullmatch(line)) for line in lines if line.startswith("- ")]
    assert not [line for line, entry in found if entry is None]
    return [entry for _, entry in found if entry is not None]


def test_the_glossary_is_alphabetical_with_each_word_once() -> None:
    words = [entry["word"].lower() for entry in entries()]
    assert words == sorted(set(words))


def test_every_module_that_the_glossary_names_exists() -> None:
    assert not [entry["module"] for entry in entries() if not (PACKAGE / entry["module"]).exists()]


def test_every_document_that_a_module_cites_is_in_the_package() -> None:
    modules = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    cited = {(path.name, name) for path, text in modules.items() for name in re.findall(r"docs/(\w+\.md)", text)}
    assert not [(module, name) for module, name in cited if not (PACKAGE / "docs" / name).is_file()]


@pytest.mark.skipif(f"typer=={version('typer')}" not in CONSTRAINTS, reason="another typer words the pages otherwise")
def test_a_page_for_each_command_says_what_its_help_says() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in PAGES.iterdir()}
    assert written == command_pages(), "Make them again: make docs"
