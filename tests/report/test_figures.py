"""The figures as files: those of the page, the same bytes each time, and what is thinned is said in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from codetune.errors import InputError, UsageError
from codetune.report import figures
from codetune.report.figure_parts import figures_of
from codetune.report.figures import light_colours, require_matplotlib, write_figures
from codetune.report.page_sweep import page_sweep
from tests.report.test_page_sweep import VARIANTS

ESTIMATE = {"pass@1": 0.5}
REPORT = {"tasks": 2, "pass_at_k": {"plus": ESTIMATE}, "interval_95": {"plus": {"pass@1": (0.1, 0.9)}}}
SELECTION: dict[str, Any] = {
    "report": {
        "histograms": {
            "ifd": {
                "edges": [0.5, 0.75, 1.0],
                "counts": {"rows": [2, 1], "taken": [1, 0]},
                "below": {"rows": 0},
                "above": {"rows": 1},
                "cuts": {"max_ifd": 1.0},
            },
            "pmi": None,
        }
    },
    "rows": {
        "of_rows": 5,
        "states": ("taken", "not taken", "mismatched pair", "set aside", "no score"),
        "id": ["a", "b", "c"],
        "x": [0.0, 1.0, 2.0],
        "y": [0.0, 1.0, 0.0],
        "variance": (0.5, 0.25),
        "state": [0, 1, 2],
        "cluster": [0, 1, None],
        "ifd": [0.5, 0.6, 2.0],
        "tokens": [10, 100, None],
        "random": [1, 0, 0],
    },
}
DOCUMENT = {
    "selection": SELECTION,
    "training": {
        "lines": [{"step": 1, "loss": 2.0, "padding_rate": 0.0}, {"step": 2, "loss": 1.0, "holdout_loss": 1.5}],
        "of_lines": 3,
    },
    "benchmarks": {
        "found": [{"name": "$mine$", "reports": [{"model": "base", **REPORT}, {"model": "tuned", **REPORT}]}]
    },
    "sweep": {**page_sweep(VARIANTS), "outcomes": page_sweep(VARIANTS)["outcomes"][:1]},
}
OF_SELECTION = ["ifd", "map", "map-clusters", "map-random", "length"]
MISSING = {"missing": "There is nothing"}
NOTHING = {"selection": MISSING, "training": MISSING, "benchmarks": MISSING, "sweep": None}
NAMES = [*OF_SELECTION, "loss", "pass-$mine$", "sweep-rates-mine-plus", "sweep-variants-mine-plus"]


def test_every_figure_is_written_as_png_and_svg_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "deep" / "other"
    written = write_figures(DOCUMENT, one)
    assert [path.name for path in written] == [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    again = write_figures({**DOCUMENT, "selection": {"missing": ""}}, other)
    assert all(path.read_bytes() == (one / path.name).read_bytes() for path in again)
    assert not [path for path in one.glob("*.svg") if "<metadata>" in path.read_text(encoding="utf-8")]


def test_a_figure_says_what_it_does_not_show() -> None:
    notes = {figure.name: figure.note for figure in figures_of(DOCUMENT, light_colours())}
    assert notes["ifd"] == "1 row above the axis"
    assert notes["map"] == "3 of 5 rows, a fixed sample"
    assert notes["length"] == "3 of 5 rows, a fixed sample; 1 row above the axis"
    assert notes["loss"] == "2 of 3 lines of train/metrics.jsonl"


def test_long_names_of_variants_are_whole_and_have_room() -> None:
    names = [f"random as ifd_cluster-mismatch_{mismatch}" for mismatch in ("ifd", "calibrated")]
    sweep = page_sweep([{**VARIANTS[0], "name": name} for name in names])
    figure = next(figures_of({**NOTHING, "sweep": sweep}, light_colours()))
    axes = Figure().add_subplot()
    figure.draw(axes)
    assert [label.get_text().replace("\n", "") for label in axes.get_yticklabels()] == names
    assert figure.height_inches == pytest.approx(1.2 + 0.2 * 2 * 2)


def test_what_is_missing_on_the_page_has_no_figure() -> None:
    assert not list(figures_of(NOTHING, light_colours()))


def test_a_directory_that_cannot_be_made_and_a_missing_library_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file\. .* Name another directory with --figures"):
        write_figures(DOCUMENT, tmp_path / "file" / "figures")
    monkeypatch.setattr(figures, "installed_version", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'codetune\[report\]'"):
        require_matplotlib()
