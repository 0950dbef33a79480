"""Near duplicates among a million rows: time, and bytes of memory a row.

    python -m tests.performance.duplicates [--rows 1000000] [--few 50000] [--directory DIR]

Rows are made: an instruction of some 20 words and an answer of some 60, so that shingles are as many as in short real
rows. Of a hundred rows one repeats an earlier row but for its white space, and four but for a word; the record says how
many of both were found. The way is that of `select`: from examples.jsonl, with the signatures in a file without a name.
Once with few rows and once with many, each in a new process: the difference is bytes a row. Memory is what no file
backs (RssAnon). Needs 1 GB of disk and some ten minutes of one core."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = 20_000
EVERY, COPIES = 100, {"duplicate": 1, "near duplicate": 4}  # of so many rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=50_000)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.directory, given.measure)))
        return
    found = {}
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        for rows in (given.few, given.rows):
            command = [sys.executable, "-m", __spec__.name, "--measure", str(rows), "--directory", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[rows] = json.loads(done.stdout)
            print(rows, found[rows], flush=True)
    from tests.performance.record import write_record

    few, many = found[given.few], found[given.rows]
    growth = many["added_bytes"] - few["added_bytes"]
    figures = {"few": few, "many": many, "bytes_a_row": round(growth / (given.rows - given.few), 1)}
    print(write_record("duplicates", {"rows": given.rows, "few": given.few}, figures))


def measure(directory: Path, rows: int) -> dict[str, Any]:
    import numpy as np

    from codetune.project.file import read_project
    from codetune.stages.exclusions import find_exclusions
    from codetune.stages.runner import open_context
    from codetune.store.examples import write_examples
    from tests.performance.million import Sampler, anonymous_bytes

    project = directory / f"{rows}.yaml"
    project.write_text(f"name: rows-{rows}\nselect: {{deduplicate: near, decontaminate: [], checks: []}}\n")
    context = open_context(read_project(project, [], {}))
    write_examples(context.run, make_rows(rows))
    before = anonymous_bytes()
    with Sampler() as sampler:
        began, processor = time.monotonic(), time.process_time()
        exclusions = find_exclusions(context, np.empty(0, dtype=np.uint64))
        seconds, processor_seconds = time.monotonic() - began, time.process_time() - processor
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "added_bytes": sampler.peak - before,
        "planted": {kind: count * rows // EVERY for kind, count in COPIES.items()},
        "found": dict(Counter(exclusions.counts())),
    }


def make_rows(count: int) -> Iterator[Any]:
    from codetune.records import Example, Message, content_id

    dice, words = random.Random(42), [f"{first}{second}" for first in "abcdefghij" for second in range(WORDS // 10)]
    instruction, answer = [""], [""]
    for number in range(count):
        kind = number % EVERY
        if kind == 0 or kind > sum(COPIES.values()):
            instruction, answer = dice.choices(words, k=20), dice.choices(words, k=60)
            text = " ".join(answer)
        elif kind <= COPIES["duplicate"]:
            text = "  ".join(answer)
        else:
            text = " ".join([*answer[:-1], dice.choice(words)])
        messages = (Message("user", " ".join(instruction)), Message("assistant", text))
        yield Example(content_id(messages), messages, f"rows:{number + 1}")


if __name__ == "__main__":
    main()
