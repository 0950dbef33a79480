"""The figures of the page as files, PNG and SVG, one column of a paper wide. Drawn by matplotlib, an extra that is
imported here alone, from the document of the page: both show the same numbers. The same run gives the same bytes.

What each figure shows is in `figure_parts.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from codetune.errors import UsageError, unusable_directory
from codetune.report.figure_parts import FigureSpec, figures_of
from codetune.report.requirements import installed_version
from codetune.store.files import write_bytes

WIDTH_INCHES, DOTS_PER_INCH = 3.5, 300
KINDS: Mapping[str, Mapping[str, None]] = {
    "png": {"Software": None},
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),  # no metadata at all
}
# Of matplotlib: no file of the user's changes a figure, no name is a formula, and ids in an SVG are the same each time.
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "axes.unicode_minus": False,  # the sign of negative numbers is a hyphen, as in the terminal
    "svg.hashsalt": "codetune",
    "font.size": 8,
    "figure.titlesize": 8.5,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "legend.title_fontsize": 6.5,
    "legend.markerscale": 1.8,
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Raises UsageError where it is missing."""
    if installed_version("matplotlib") is None:
        raise UsageError(
            "--figures draws with matplotlib, which is not installed. Expected: the extra `report`. Install it: "
            "pip install 'codetune[report]'"
        )


def write_figures(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Every figure of the page's document as NAME.png and NAME.svg. Raises InputError where the directory cannot be
    written to."""
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for spec in figures_of(document, light_colours()):
            for kind, content in _drawn(spec).items():
                path = directory / f"{spec.name}.{kind}"
                write_bytes(path, content)
                written.append(path)
    except OSError as why:
        raise unusable_directory(directory, why, "Name another directory with --figures") from None
    return written


def light_colours() -> dict[str, str]:
    """The colours of the page on a light ground, by their names in page.css."""
    style = files("codetune.report").joinpath("page.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", style.partition("}")[0]))


def _drawn(spec: FigureSpec) -> dict[str, bytes]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH_INCHES, spec.height_inches), dpi=DOTS_PER_INCH, layout="constrained")
        figure.suptitle(spec.title, x=0.01, horizontalalignment="left")
        axes = figure.add_subplot()
        spec.draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if len(handles) > 1 or spec.note:
            shown = (handles, labels) if len(handles) > 1 else ([], [])
            figure.legend(*shown, loc="outside lower center", ncols=2, title=spec.note or None)
        return {kind: _saved(figure, kind) for kind in KINDS}


def _saved(figure: Any, kind: str) -> bytes:  # matplotlib's figure
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata=KINDS[kind])
    return buffer.getvalue()
