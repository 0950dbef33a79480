"""Writes `codetune/docs/commands/`, a page a command, made of what its `--help` says, and `configs/`, a project file a
preset. A command of its own: make docs.

`test_docs.py` and `test_configs.py` fail where a file is not what would be written now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

from codetune.cli import app
from codetune.project.file import commented_yaml
from codetune.project.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, DOCS = ROOT / "configs", ROOT / "codetune" / "docs"
PAGES = DOCS / "commands"
HEADINGS = re.findall(r"^## (.+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
SECTIONS = {"evaluate": "eval", "run": "Every command", "status": "Every command"}  # of commands without one


def command_pages() -> Mapping[str, str]:
    """The text of each page by its file name; `README.md` lists the others."""
    group: Any = typer.main.get_command(app)  # click's types, which typer has a copy of
    assert isinstance(group, TyperGroup)
    return {"README.md": _contents(group), **{f"{name}.md": _page(name, group) for name in group.commands}}


def _contents(group: Any) -> str:
    parts = [f"# Commands\n\n{group.help}"]
    for title, members in groupby(_ordered(group), lambda command: command.rich_help_panel):
        lines = [f"- [{command.name}]({command.name}.md): {command.help}" for command in members]
        parts.append("\n".join([f"## {title}\n", *lines]))
    return "\n\n".join(parts) + "\n"


def _ordered(group: Any) -> list[Any]:
    """The commands by group, as `codetune --help` has them."""
    found = list(group.commands.values())
    titles = list(dict.fromkeys(command.rich_help_panel for command in found))
    return sorted(found, key=lambda command: titles.index(command.rich_help_panel))


def _page(name: str, group: Any) -> str:
    text = get_docs_for_click(obj=group.commands[name], ctx=typer.Context(group), name=name, call_prefix="codetune")
    section = SECTIONS.get(name, name)
    link = f"[{section}](../reference.md#{section.lower().replace(' ', '-')})"
    return f"{text.strip()}\n" + (f"\nWhat it does, exactly: {link}.\n" if section in HEADINGS else "")


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for file, page in command_pages().items():
        (PAGES / file).write_text(page, encoding="utf-8")
    for name, settings in PRESETS.items():
        (CONFIGS / f"{name}.yaml").write_text(commented_yaml(settings), encoding="utf-8")
