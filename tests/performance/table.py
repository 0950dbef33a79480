"""The records of `results/` as Markdown tables for the README.

python -m tests.performance.table [RECORD ...]      # default: those of a GPU, else those of a CPU"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.performance.record import RESULTS

Row = tuple[str, ...]


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
            if "samples_per_second" not in found or not found["samples_per_second"]:
                continue
            peak, state = found["peak_memory_bytes"], found["state_bytes"]
            yield (
                variant,
                share(found["padding_rate"]),
                f"{found['samples_per_second']:.2f}",
                f"{peak / 1e9:.2f}",
                f"{(peak - state) / 1e9:.2f}",
                share(found["share_of_matrix_rate"]),
            )
    elif kind == "generate":
        yield ("", "tokens/s", "times one at a time")
        for decoder, rates in figures["tokens_per_second"].items():
            ratio = figures["median_ratio"].get(decoder)
            yield decoder, f"{statistics.median(rates):g}", f"{ratio:g}" if ratio else ""


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def markdown(rows: Sequence[Row]) -> str:
    head, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rest)) + "\n"


if __name__ == "__main__":
    main()
