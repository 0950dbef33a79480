"""The document of the page -> its figures, each as a function that draws on matplotlib's axes. Says in the figure
what is thinned, and what lies outside of it. Imports no matplotlib, and reads no file."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from codetune.console import percent, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Part = Mapping[str, Any]  # of the document
Colours = Mapping[str, str]
STATE_COLOURS = ("taken", "not-taken", "mismatched", "set-aside", "no-score")  # in the order of `states`
HEIGHT_INCHES, HIGH_INCHES, ROW_INCHES = 2.6, 3.2, 0.2
NOTE_CHARACTERS, NAME_CHARACTERS = 72, 30  # of a line
GOLDEN_ANGLE = 137.508  # degrees between the colours of two clusters, as on the page
HISTOGRAM_UNITS = {"ifd": "IFD (ratio of perplexities)", "pmi": "pmi (nats that the instruction helps)"}
# Name, title and unit of a figure, and of its curves the key of metrics.jsonl, title, colour and divisor.
CURVES = (
    (
        "loss",
        "Loss by step",
        "nats a token",
        (("loss", "training loss", "taken", 1.0), ("holdout_loss", "loss on held-out rows", "mismatched", 1.0)),
    ),
    ("speed", "Speed by step", "tokens a second", (("tokens_per_second", "", "taken", 1.0),)),
    ("memory", "Peak memory of a GPU by step", "GB", (("peak_memory_bytes", "", "taken", 1e9),)),
    ("padding", "Padding by step", "share of the tokens computed", (("padding_rate", "", "taken", 1.0),)),
)
CURVE_COLOURS = ("taken", "mismatched", "set-aside", "good", "no-score", "ink")
REFERENCES = {"all": ("all rows", "soft", ":"), "base": ("base model", "ink", "-.")}  # title, colour, line


@dataclass(frozen=True, slots=True)
class FigureSpec:
    name: str  # of its files
    title: str
    draw: Callable[[Axes], None]
    note: str = ""
    height_inches: float = HEIGHT_INCHES


def figures_of(document: Part, colours: Colours) -> Iterator[FigureSpec]:
    """Every figure that the page has, in its order."""
    selection, training, benchmarks = (document[name] for name in ("selection", "training", "benchmarks"))
    if "missing" not in selection:
        yield from _of_selection(selection, colours)
    if "missing" not in training:
        yield from _of_training(training, colours)
    for found in benchmarks.get("found", ()):
        yield _of_benchmark(found, colours)
    if document.get("sweep"):
        yield from _of_sweep(document["sweep"], colours)


def _of_selection(selection: Part, colours: Colours) -> Iterator[FigureSpec]:
    rows, histograms = selection["rows"], selection["report"].get("histograms") or {}
    for name, title in (("ifd", "IFD of all rows and of those taken"), ("pmi", "pmi of all rows and of those taken")):
        if found := histograms.get(name):
            draw = partial(_draw_histogram, found, colours, HISTOGRAM_UNITS[name])
            yield FigureSpec(name, title, draw, _beyond(found))
    if rows["x"]:
        yield from _maps(rows, colours)
    if rows["tokens"] and histograms.get("ifd"):
        most = histograms["ifd"]["edges"][-1]
        beyond = sum(value is not None and value > most for value in rows["ifd"])
        note = _note(_thinned(rows), f"{quantity(beyond, 'row')} above the axis" if beyond else "")
        draw = partial(_draw_lengths, rows, colours, most)
        yield FigureSpec("length", "Length of the answer against IFD", draw, note)


def _draw_histogram(found: Part, colours: Colours, unit: str, axes: Axes) -> None:
    counts, edges = found["counts"], found["edges"]
    axes.stairs(counts["rows"], edges, fill=True, color=colours["pale"], label="all rows")
    axes.stairs(counts["taken"], edges, fill=True, color=colours["taken"], label="taken")
    if "shuffled" in counts:
        axes.stairs(counts["shuffled"], edges, color=colours["set-aside"], label="pairs shuffled on purpose")
    cut = _cut(found["cuts"])
    if cut is not None and edges[0] <= cut[0] <= edges[-1]:
        axes.axvline(cut[0], color=colours["mismatched"], linestyle="--", label=f"cut: {cut[1]} {cut[0]:.3g}")
    axes.set_xlabel(unit)
    axes.set_ylabel("rows")


def _cut(cuts: Part) -> tuple[float, str] | None:
    if cuts.get("max_ifd") is not None:
        return cuts["max_ifd"], "max_ifd"
    limits = cuts.get("limit_quantiles")
    return (limits[len(limits) // 2], "limit (median)") if limits else None


def _beyond(found: Part) -> str:
    beyond = {where: found[where]["rows"] for where in ("below", "above")}
    return _note(*(f"{quantity(count, 'row')} {where} the axis" for where, count in beyond.items() if count))


def _maps(rows: Part, colours: Colours) -> Iterator[FigureSpec]:
    note, height = _note(_thinned(rows)), HIGH_INCHES
    states = [(name, colours[shade]) for name, shade in zip(rows["states"], STATE_COLOURS, strict=True)]
    groups = [(name, shade, _where(rows["state"], index)) for index, (name, shade) in enumerate(states)]
    yield FigureSpec("map", "The selection on the map of embeddings", partial(_draw_map, rows, groups), note, height)
    clusters = sorted({cluster for cluster in rows["cluster"] if cluster is not None})
    if clusters:
        shades = [("", cluster_colour(cluster), _where(rows["cluster"], cluster)) for cluster in clusters]
        yield FigureSpec(
            "map-clusters", f"The {len(clusters)} clusters on the map", partial(_draw_map, rows, shades), note, height
        )
    drawn = [
        ("drawn", colours["taken"], _where(rows["random"], 1)),
        ("not drawn", colours["not-taken"], _where(rows["random"], 0)),
    ]
    yield FigureSpec(
        "map-random", "A random draw of as many eligible rows", partial(_draw_map, rows, drawn), note, height
    )


def cluster_colour(cluster: int) -> tuple[float, float, float]:
    return colorsys.hls_to_rgb(cluster * GOLDEN_ANGLE % 360 / 360, 0.5, 0.6)


def _where(column: Sequence[object], value: object) -> list[int]:
    return [index for index, found in enumerate(column) if found == value]


def _draw_map(rows: Part, groups: Sequence[tuple[str, Any, Sequence[int]]], axes: Axes) -> None:
    xs, ys = np.array(rows["x"]), np.array(rows["y"])
    for title, shade, where in groups:
        _scatter(axes, xs[where], ys[where], shade, title)
    shares = [f" ({percent(share)} of the variance)" for share in rows["variance"] or ()] or ["", ""]
    axes.set_xlabel(f"first principal component{shares[0]}")
    axes.set_ylabel(f"second{shares[1]}")
    axes.set_xticks([])
    axes.set_yticks([])


def _scatter(axes: Axes, xs: Any, ys: Any, shade: Any, title: str) -> None:
    """Below what is there. The points are an image, also in an SVG, which would have megabytes of them."""
    if len(xs):
        size, order = 1.5 if len(xs) > 6000 else 3.0, -len(axes.collections)
        made = axes.scatter(xs, ys, s=size, color=shade, linewidths=0, alpha=0.8, label=title or None, zorder=order)
        made.set_rasterized(True)


def _draw_lengths(rows: Part, colours: Colours, most: float, axes: Axes) -> None:
    known = [
        (tokens, ifd, state)
        for tokens, ifd, state in zip(rows["tokens"], rows["ifd"], rows["state"], strict=True)
        if tokens and ifd is not None and ifd <= most
    ]
    for index, name in enumerate(rows["states"]):
        points = np.array([(tokens, ifd) for tokens, ifd, state in known if state == index]).reshape(-1, 2)
        _scatter(axes, points[:, 0], points[:, 1], colours[STATE_COLOURS[index]], name)
    axes.set_xscale("log", subs=[2, 5])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("answer (tokens, logarithmic)")
    axes.set_ylabel("IFD")


def _thinned(rows: Part) -> str:
    shown, every = len(rows["id"]), rows["of_rows"]
    return f"{shown:,} of {quantity(every, 'row')}, a fixed sample" if shown < every else ""


def _of_training(training: Part, colours: Colours) -> Iterator[FigureSpec]:
    lines = training["lines"]
    thinned = f"{len(lines):,} of {quantity(training['of_lines'], 'line')} of train/metrics.jsonl"
    note = _note(thinned if len(lines) < training["of_lines"] else "")
    for name, title, unit, series in CURVES:
        values = [line[key] for line in lines for key, *_ in series if line.get(key) is not None]
        if any(values) if name == "padding" else values:
            yield FigureSpec(name, title, partial(_draw_curves, lines, series, unit, colours), note)


def _draw_curves(lines: Sequence[Part], series: Sequence[Any], unit: str, colours: Colours, axes: Axes) -> None:
    for key, title, shade, divisor in series:
        points = [(line["step"], line[key] / divisor) for line in lines if line.get(key) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) <= 40 else ""
            axes.plot(steps, values, color=colours[shade], label=title or None, marker=marker, markersize=3)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_xlabel("step")
    axes.set_ylabel(unit)


def _of_benchmark(found: Part, colours: Colours) -> FigureSpec:
    reports = found["reports"]
    size = next(iter(reports[0]["pass_at_k"]["plus"]))
    figures = [_pass_rate(report, size) for report in reports]
    note = f"{quantity(reports[0]['tasks'], 'task')}; base and plus tests; bars are 95 % intervals"
    draw = partial(_draw_intervals, figures, False, size, colours)
    return FigureSpec(f"pass-{found['name']}", f"{size} on {found['name']}", draw, _note(note), _height(figures))


def _pass_rate(report: Part, size: str) -> Part:
    low, high = report["interval_95"]["plus"][size]
    mean, is_control = report["pass_at_k"]["plus"][size], report["model"] != "tuned"
    return {"name": report["model"], "is_control": is_control, "mean": mean, "low": low, "high": high}


def _height(figures: Sequence[Part]) -> float:
    lines = max(len(_whole_name(each).splitlines()) for each in figures)
    return 1.2 + ROW_INCHES * len(figures) * lines


def _whole_name(figure: Part) -> str:
    """In several lines where it is long: the names of variants often differ in their ends alone."""
    return fill(str(figure["name"]), NAME_CHARACTERS)


def _draw_intervals(figures: Sequence[Part], is_loss: bool, unit: str, colours: Colours, axes: Axes) -> None:
    """A line for each, the first at the top."""
    for at, each in enumerate(figures):
        shade = colours["not-taken" if each["is_control"] else "taken"]
        axes.plot([each["low"], each["high"]], [at, at], color=shade, linewidth=2)
        axes.plot(each["mean"], at, color=shade, marker="o", markersize=5)
    axes.set_yticks(range(len(figures)), [_whole_name(each) for each in figures])
    axes.set_ylim(len(figures) - 0.5, -0.5)
    axes.set_xlabel(unit)
    if not is_loss:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def _of_sweep(sweep: Part, colours: Colours) -> Iterator[FigureSpec]:
    note = _note(f"mean over {quantity(sweep['seeds'], 'seed')}; bars are 95 % intervals")
    for outcome in sweep["outcomes"]:
        name, unit = outcome["name"].replace(" ", "-"), "nats a token" if outcome["is_loss"] else "pass@1"
        if outcome["curves"]:
            draw = partial(_draw_rates, outcome, sweep["rate"], unit, colours)
            yield FigureSpec(f"sweep-rates-{name}", outcome["title"], draw, note, HIGH_INCHES)
        draw = partial(_draw_intervals, outcome["figures"], outcome["is_loss"], unit, colours)
        yield FigureSpec(f"sweep-variants-{name}", outcome["title"], draw, note, _height(outcome["figures"]))


def _draw_rates(outcome: Part, rate: str, unit: str, colours: Colours, axes: Axes) -> None:
    """The runs on all rows, and the base model, are lines with their intervals as bands."""
    for each in outcome["references"]:
        axes.axhspan(each["low"], each["high"], color=colours["pale"], alpha=0.5, linewidth=0)
        title, shade, line = REFERENCES.get(each["name"], (each["name"], "ink", "-."))  # a base model of some settings
        axes.axhline(each["mean"], color=colours[shade], linestyle=line, label=title)
    for index, curve in enumerate(outcome["curves"]):
        points, is_random = curve["points"], curve["is_random"]
        at, mean, low, high = ([point[name] for point in points] for name in ("at", "mean", "low", "high"))
        reach = [np.subtract(mean, low), np.subtract(high, mean)]
        shade = colours["not-taken"] if is_random else colours[CURVE_COLOURS[index % len(CURVE_COLOURS)]]
        style = "--" if is_random else "-"
        axes.errorbar(
            at, mean, reach, color=shade, linestyle=style, marker="o", markersize=3, capsize=2, label=curve["name"]
        )
    axes.set_xlabel(rate)
    axes.set_ylabel(unit)
    if not outcome["is_loss"]:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def _note(*parts: str) -> str:
    return fill("; ".join(filter(None, parts)), NOTE_CHARACTERS)
