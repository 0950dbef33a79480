"""Every project file that is shipped loads, and is what `codetune init` writes for its preset."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.project.file import commented_yaml, read_project
from codetune.project.presets import PRESETS
from tests.command_pages import CONFIGS

FILES = sorted(CONFIGS.glob("*.yaml"))


def test_every_preset_is_shipped_and_nothing_else() -> None:
    assert {path.stem for path in FILES} == set(PRESETS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_project_file_loads(path: Path) -> None:
    assert read_project(path, [], {}).name == PRESETS[path.stem]["name"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_project_file_is_what_init_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == commented_yaml(PRESETS[path.stem]), "Make it again: make docs"
