"""What the checks of answers find in real rows, and in the same rows with faults planted in all of them.

    python -m tests.performance.answer_checks --data DIR

`--data` has `code-alpaca-20k.json.gz` and `evol-round*.json`. The faults: the answer cut after half of its characters,
the instruction's programming language replaced by another, and the instruction in the place of the answer."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codetune.benchmark.statistics import wilson_interval
from codetune.data.source import read_examples
from codetune.project.sections import Dataset, Selection
from codetune.records import Example, Message
from codetune.selection.answer_checks import failed_checks
from tests.performance.mismatch_likelihoods import other_language
from tests.performance.record import write_record

DATA_SETS = {"code-alpaca": "code-alpaca-20k.json.gz", "evol": "evol-round*.json"}


def pair(row: Example, instruction: str, answer: str) -> Example:
    return replace(row, messages=(Message("user", instruction), Message("assistant", answer)))


def truncated(row: Example) -> Example | None:
    return pair(row, row.instruction, row.answer[: len(row.answer) // 2])


def in_another_language(row: Example) -> Example | None:
    asked = other_language(row.instruction)
    return None if asked is None else pair(row, asked, row.answer)


def repeated(row: Example) -> Example | None:
    return pair(row, row.instruction, row.instruction)


FAULTS: Mapping[str, Callable[[Example], Example | None]] = {
    "truncated": truncated,
    "language": in_another_language,
    "repeat": repeated,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--data", type=Path, required=True)
    data = arguments.parse_args().data
    checks = Selection().checks
    figures = {name: evaluate(list(read_rows(data / file)), checks) for name, file in DATA_SETS.items()}
    print(write_record("answer-checks", {"checks": list(checks)}, figures))


def read_rows(path: Path) -> Iterator[Example]:
    settings = Dataset(path=str(path), instruction="instruction", response="output")
    return (row for row in read_examples(settings, str(path)) if isinstance(row, Example))


def evaluate(rows: Sequence[Example], checks: Sequence[str]) -> dict[str, Any]:
    """The good rows that fail each check, and of each fault how many were planted and found."""
    figures: dict[str, Any] = {"rows": len(rows), "good": count_failed(rows, checks)}
    for name, plant in FAULTS.items():
        planted = [faulty for row in rows if (faulty := plant(row)) is not None]
        found = sum(count_failed(planted, checks).values())
        interval = [round(bound, 3) for bound in wilson_interval(found, len(planted))]
        recall = round(found / len(planted), 3)
        figures[name] = {"planted": len(planted), "found": found, "recall": recall, "recall_interval_95": interval}
    return figures


def count_failed(rows: Sequence[Example], checks: Sequence[str]) -> dict[str, int]:
    """Check -> rows."""
    return dict(Counter(reason.partition(":")[0] for _, reason in failed_checks(rows, checks)))


if __name__ == "__main__":
    main()
