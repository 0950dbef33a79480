"""The records of `results/` as Markdown tables for the README.

python -m tests.performance.table [RECORD ...]      # default: those of a GPU, else those of a CPU

The two records of `claim.py` are one table: what was trained on, by row, and the outcomes of both worlds, by column."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.performance.record import RESULTS

Row = tuple[str, ...]
# The outcome of each world of the claim, its heading, the format of its figure, and the factor that it is shown by.
CLAIMS = {"claim-demo": ("demo plus", "pass@1", ".1f", 100), "claim-real": ("held-out loss", "loss", ".3f", 1)}
CLAIM_COLUMNS = ("tokens", "wrong pairs", "", "against random", "against all")
CLAIM_NAMES = {
    "base": "nothing",
    "all": "all rows",
    "random": "random 40 %",
    "ifd_cluster-mismatch_ifd": "`ifd_cluster`, `ifd` (the paper's)",
    "ifd_cluster-mismatch_calibrated": "`ifd_cluster`, `calibrated` (the default)",
    "parametric": "`parametric`",
    "facility": "`facility`",
}


KINDS = {
    "random": "exchanged at random",
    "cluster": "exchanged within a cluster",
    "near": "of the most similar task",
    "language": "in another language",
    "truncated": "cut in half",
    "repeat": "only repeats the instruction",
}


def main() -> None:
    records = [Path(name) for name in sys.argv[1:]] or default_records()
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = list(table(path.stem, record.get("figures", {})))
        if rows:
            device = (
                record["device"].get("gpu") or f"{record['device']['cores']} cores, {record['device']['processor']}"
            )
            print(f"{path.stem} ({device}, torch {record['versions']['torch']})\n")
            print(markdown(rows))
    if not sys.argv[1:] and all((RESULTS / f"{name}.json").is_file() for name in CLAIMS):
        print(markdown(claim_table(read_claims())))


def default_records() -> list[Path]:
    found = sorted(RESULTS.glob("*.json"))
    on_gpu = [path for path in found if "gpu" in json.loads(path.read_text(encoding="utf-8")).get("device", {})]
    return on_gpu or found


def table(name: str, figures: dict[str, Any]) -> Iterator[Row]:
    kind = name.partition("-")[0]
    if kind == "score":
        yield ("", "rows/s", "one at a time", "times as fast", "than padded batches of 4", "of the matrix rate")
        for shape, found in figures.items():
            padded = found.get("times_as_fast_as_padded")
            yield (
                shape,
                f"{found['ours']['rows_per_second']:g}",
                f"{found['plain']['rows_per_second']:g}",
                f"{statistics.median(found['times_as_fast']):.2f}",
                f"{statistics.median(padded):.2f}" if padded else "",
                share(found["ours"].get("share_of_matrix_rate")),
            )
    elif kind == "train":
        yield ("", "padding", "samples/s", "peak GB", "beyond weights and optimizer", "of the matrix rate")
        for variant, found in figures.items():
            if "samples_per_second" not in found:  # not installed, or failed
                continue
            peak, state = found["peak_memory_bytes"], found["state_bytes"]
            yield (
                variant,
                share(found["padding_rate"]),
                f"{found['samples_per_second']:.2f}",
                f"{peak / 1e9:.2f}",
                f"{(peak - state) / 1e9:.2f}",
                share(found.get("share_of_matrix_rate")),
            )
    elif kind == "generate":
        yield ("", "tokens/s", "times one at a time")
        for decoder, rates in figures["tokens_per_second"].items():
            ratio = figures["median_ratio"].get(decoder)
            yield decoder, f"{statistics.median(rates):g}", f"{ratio:g}" if ratio else ""
    elif kind == "mismatch":
        yield ("answer", "Code-Alpaca: `ifd`", "`calibrated`", "Evol-Instruct: `ifd`", "`calibrated`")
        for kind, name in KINDS.items():
            rules = [figures[data_set][kind][rule] for data_set in figures for rule in ("ifd", "calibrated")]
            yield name, *(found_share(rule["recall"], rule["recall_interval_95"]) for rule in rules)


def read_claims() -> dict[str, dict[str, Any]]:
    """The figures of each world of the claim."""
    return {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"] for name in CLAIMS}


def claim_table(claims: Mapping[str, dict[str, Any]]) -> list[Row]:
    """Tokens are a share of those of all rows; a difference that is told apart is bold."""
    heading = [column or CLAIMS[name][1] for name in claims for column in CLAIM_COLUMNS]
    names = list(dict.fromkeys(trained for found in claims.values() for trained in found["models"]))
    cells = {name: [cell for world in claims for cell in claim_cells(world, claims[world], name)] for name in names}
    return [("trained on", *heading), *((CLAIM_NAMES.get(name, name), *found) for name, found in cells.items())]


def claim_cells(world: str, figures: dict[str, Any], name: str) -> Row:
    """Of one world, in the order of CLAIM_COLUMNS."""
    outcome, _, form, factor = CLAIMS[world]
    found = figures["models"][name]
    mean = f"{factor * found['figures'][outcome]['mean']:{form}}"
    if name == "base":
        return "", "", mean, "", ""
    tokens = found["tokens"] / figures["models"]["all"]["tokens"]
    differences = [found["against"].get(control, {}).get(outcome) for control in ("random", "all")]
    shown = [difference(each, f"+{form}", factor) if each else "" for each in differences]
    return (f"{tokens:.0%}".replace("%", " %"), f"{found['mismatched']:.0f}", mean, *shown)


def difference(found: dict[str, Any], form: str, factor: float) -> str:
    mean, low, high = (f"{factor * found[key]:{form}}" for key in ("mean", "low", "high"))
    return f"**{mean}** ({low} to {high})" if found["told_apart"] else f"{mean} ({low} to {high})"


def found_share(recall: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{recall:.0%} ({low:.0%} to {high:.0%})".replace("%", " %").replace(" % to", " to").replace(" %)", ")")


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def markdown(rows: Sequence[Row]) -> str:
    head, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rest)) + "\n"


if __name__ == "__main__":
    main()
