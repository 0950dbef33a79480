"""The finished artefacts of a run -> `report.html`: one file that opens from disk and asks no server for anything.

The document of `page_document.py` lies in the file as JSON; `page.js` draws it, `page.css` says how it looks. Texts of
rows and programs are never HTML here: the JSON has no `<`, and the script writes text only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path

from codetune.console import CommandResult, quantity
from codetune.errors import InputError
from codetune.report.figures import require_matplotlib, write_figures
from codetune.report.page_document import page_document
from codetune.stages.stage import RunContext
from codetune.store.files import write_text
from codetune.store.run_directory import open_run

# The browser itself refuses every request, whatever the data hold.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def make_report(context: RunContext, figures: Path | None = None) -> CommandResult:
    """Writes the page, and its figures into the directory `figures`. Raises InputError where nothing has been run,
    StaleError for a damaged artefact, UsageError where the library that draws the figures is missing."""
    run = context.run
    if figures is not None:
        require_matplotlib()
    if not run.project.exists():
        if not run.sweep_table.exists():
            raise InputError(
                f"{run.directory} has no artefacts yet. Expected: those of one stage at least. Run: codetune run"
            )
        open_run(context.project)
    document = page_document(context)
    write_text(run.report, page_text(document))
    drawn = [] if figures is None else write_figures(document, figures)
    left_out = [str(part["missing"]) for part in document.values() if isinstance(part, Mapping) and "missing" in part]
    size = run.report.stat().st_size
    told = {"report": str(run.report), "bytes": size, "left_out": left_out, "figures": [str(path) for path in drawn]}
    title = f"report: {run.report} ({size / 1e6:.1f} MB, {quantity(len(left_out), 'part')} left out)"
    notes = [f"figures: {quantity(len(drawn), 'file')} in {figures}"] if drawn else []
    asides = [f"left out: {sentence}" for sentence in left_out]
    return CommandResult(title, notes=notes, asides=asides, document=told)


def page_text(document: Mapping[str, object]) -> str:
    """The whole page."""
    project = document["project"]
    assert isinstance(project, Mapping)
    name, parts = escape(str(project["name"])), files("codetune.report")
    style, script = (parts.joinpath(file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{name}: codetune report</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n"
        '<svg id="svg-namespace"></svg>\n<main id="page"></main>\n'
        "<noscript>This page needs JavaScript to draw its figures; it loads nothing from anywhere.</noscript>\n"
        f'<script type="application/json" id="document">{embedded_json(document)}</script>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def embedded_json(document: Mapping[str, object]) -> str:
    r"""JSON that can stand in a `script` element: no text of it ends that element, or begins a comment.

    >>> embedded_json({"text": "</script>"})
    '{"text":"\\u003c/script>"}'
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair becomes its JSON escape
