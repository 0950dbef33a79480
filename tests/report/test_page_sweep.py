"""The table of a sweep as curves over the sampling rate, and as intervals."""

from __future__ import annotations

from typing import Any

from codetune.report.page_sweep import page_sweep


def variant(name: str, mean: float, **settings: object) -> dict[str, Any]:
    estimate = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    figures, of_all = {"mine plus": estimate, "held-out loss": estimate}, {**estimate, "told_apart": False}
    costs: dict[str, float] = {"rows": 9.0, "tokens": 90.0, "training_seconds": 1.0, "total_seconds": 2.0}
    against = {} if name == "all" else {"all": dict.fromkeys(figures, of_all)}
    return {"name": name, "settings": keys, "seeds": 2, **costs, "figures": figures, "against": against}


VARIANTS = [
    variant("ifd-0.4", 0.6, select__strategy="ifd", select__ratio=0.4),
    variant("ifd-0.1", 0.5, select__strategy="ifd", select__ratio=0.1),
    variant("mig-0.4", 0.55, select__strategy="mig", select__ratio=0.4),
    variant("random as ifd-0.4", 0.45, select__strategy="random", select__count=40),
    variant("random as ifd-0.1", 0.4, select__strategy="random", select__count=10),
    variant("all", 0.7, select__strategy="all", select__count=None),
]


def curves(variants: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    found = page_sweep(variants)["outcomes"][0]["curves"]
    return {curve["name"]: [(point["at"], point["mean"]) for point in curve["points"]] for curve in found}


def test_a_strategy_is_a_curve_by_its_rates_beside_random_draws_as_large() -> None:
    assert curves(VARIANTS) == {
        "ifd": [(0.1, 0.5), (0.4, 0.6)],
        "mig": [(0.4, 0.55)],
        "random, as many rows": [(0.1, 0.4), (0.4, 0.45)],
    }
    plus, loss = page_sweep(VARIANTS)["outcomes"]
    assert [(each["title"], each["is_loss"]) for each in (plus, loss)] == [
        ("pass@1 on mine, base and plus tests", False),
        ("held-out loss", True),
    ]
    assert [each["name"] for each in plus["references"]] == ["all"]
    assert [each["name"] for each in plus["figures"] if each["is_control"]] == [each["name"] for each in VARIANTS[3:]]


def test_the_base_model_is_a_reference_beside_the_runs_on_all_rows() -> None:
    base = {**variant("base", 0.2), "rows": None}
    assert curves([base, *VARIANTS]) == curves(VARIANTS)
    found = page_sweep([base, *VARIANTS])["outcomes"][0]
    assert [each["name"] for each in found["references"]] == ["base", "all"]
    assert found["figures"][0]["is_control"]


def test_the_runs_on_all_rows_are_references_whatever_else_varies() -> None:
    others = [variant(f"all-epochs_{epochs}", 0.7, select__strategy="all", train__epochs=epochs) for epochs in (1, 2)]
    found = page_sweep([*VARIANTS[:2], *others])["outcomes"][0]
    assert [each["name"] for each in found["references"]] == ["all-epochs_1", "all-epochs_2"]


def test_other_settings_that_vary_have_curves_of_their_own() -> None:
    variants = [
        variant(f"{rate}-{epochs}", rate, select__ratio=rate, train__epochs=epochs)
        for rate in (0.1, 0.4)
        for epochs in (1, 2)
    ]
    name = "the project's strategy, epochs"
    assert curves(variants) == {f"{name} {epochs}": [(0.1, 0.1), (0.4, 0.4)] for epochs in (1, 2)}


def test_a_sweep_of_strategies_alone_has_intervals_and_no_curves() -> None:
    found = page_sweep([variant("ifd", 0.5, select__strategy="ifd"), variant("mig", 0.4, select__strategy="mig")])
    assert (found["rate"], found["outcomes"][0]["curves"]) == (None, [])
    assert [each["mean"] for each in found["outcomes"][0]["figures"]] == [0.5, 0.4]
