"""The table of a finished sweep (`sweep.json`) -> what the page and its figures draw of it: for each outcome a curve
over the sampling rate for every strategy, with random draws as large, the base model and the runs on all rows as
references, and every variant with its interval. Computes no figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codetune.sweep.outcomes import HELD_OUT_LOSS, RANDOM_AS
from codetune.sweep.variants import ALL, COUNT, RATIO, STRATEGY

VariantRow = Mapping[str, Any]  # of sweep.json
COLUMNS = ("name", "rows", "tokens", "training_seconds", "total_seconds", "figures", "against")
RATES = {RATIO: "sampling rate (select.ratio)", COUNT: "rows taken (select.count)"}


def page_sweep(variants: Sequence[VariantRow]) -> dict[str, Any]:
    rate = next(
        (key for key in RATES if len({_value(each, key) for each in variants if not _is_control(each)}) > 1), ""
    )
    outcomes = [_outcome(name, variants, rate) for name in variants[0]["figures"]]
    rows = [{key: each[key] for key in COLUMNS} for each in variants]
    return {"seeds": variants[0]["seeds"], "rate": RATES.get(rate), "outcomes": outcomes, "variants": rows}


def _outcome(name: str, variants: Sequence[VariantRow], rate: str) -> dict[str, object]:
    """`curves` are empty where nothing but strategies or other keys varies."""
    figures = [{"name": each["name"], "is_control": _is_control(each), **_estimate(each, name)} for each in variants]
    return {
        "name": name,
        "title": _title(name),
        "is_loss": name == HELD_OUT_LOSS,
        "curves": _curves(name, variants, rate) if rate else [],
        "references": [figure for figure, each in zip(figures, variants, strict=True) if _is_reference(each)],
        "figures": figures,
    }


def _title(name: str) -> str:
    """The title of an outcome, in words.

    >>> _title("mbpp plus"), _title("held-out loss")
    ('pass@1 on mbpp, base and plus tests', 'held-out loss')
    """
    benchmark, _, suite = name.rpartition(" ")
    return name if name == HELD_OUT_LOSS else f"pass@1 on {benchmark}, {'base and ' * (suite == 'plus')}{suite} tests"


def _curves(name: str, variants: Sequence[VariantRow], rate: str) -> list[dict[str, object]]:
    """A curve for each setting of the other keys, and one for the random draws; points by the rate."""
    rates = {each["name"]: _value(each, rate) for each in variants}
    found: dict[str, dict[float, dict[str, float]]] = {}
    for each in variants:
        at = rates.get(str(each["name"]).removeprefix(RANDOM_AS))
        if at is not None:
            found.setdefault(_curve_name(each), {})[at] = {"at": at, **_estimate(each, name)}
    return [
        {"name": title, "is_random": title.startswith("random"), "points": [points[at] for at in sorted(points)]}
        for title, points in found.items()
    ]


def _curve_name(variant: VariantRow) -> str:
    said = {key: value for key, value in variant["settings"].items() if key not in (RATIO, COUNT) and value is not None}
    strategy = said.pop(STRATEGY, "the project's strategy")
    if _is_control(variant):
        strategy = "random, as many rows"
    return ", ".join([str(strategy), *(f"{key.rpartition('.')[2]} {value}" for key, value in said.items())])


def _is_control(variant: VariantRow) -> bool:
    return _is_reference(variant) or str(variant["name"]).startswith(RANDOM_AS)


def _is_reference(variant: VariantRow) -> bool:
    """Whether it is a run on all rows, or the base model, which has none."""
    return variant["settings"].get(STRATEGY) == ALL or variant["rows"] is None


def _value(variant: VariantRow, key: str) -> float | None:
    found: float | None = variant["settings"].get(key)
    return found


def _estimate(variant: VariantRow, outcome: str) -> dict[str, float]:
    return {name: variant["figures"][outcome][name] for name in ("mean", "low", "high")}
