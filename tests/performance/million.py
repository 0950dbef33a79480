"""Memory and time of a million short rows through the stages that handle rows: what each keeps of a row in memory.

    python -m tests.performance.million [--rows 1000000] [--few 50000] [--directory DIR] [--before RECORD]

`examples` reads the data set into examples.jsonl; score, embed, select and status read that file. The flow is the real
one, from data set to sealed artefacts; the network is a fake that costs nothing, the embedder the offline one. Each
step runs in a new process, once with few rows and once with many: the difference is bytes a row. Memory is the part of
the resident memory that no file backs (RssAnon, sampled every 5 ms), because the kernel reclaims mapped files when it
needs memory. Needs some 3 GB of disk and half an hour of one core."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEPS = ("examples", "score", "embed", "select", "status")
CLUSTERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=50_000)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--before", type=Path, help="an earlier record; its figures are kept beside the new ones")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measure(given.step, given.directory / "codetune.yaml")))
        return
    before = json.loads(given.before.read_text(encoding="utf-8")) if given.before else None
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        few, many = (run_all(Path(name) / str(rows), rows) for rows in (given.few, given.rows))
    from tests.performance.record import write_record

    figures = {step: compare(few[step], many[step], given.rows - given.few) for step in STEPS}
    settings = {"rows": given.rows, "few": given.few, "clusters": CLUSTERS, "one_copy_of_the_vectors_bytes_a_row": 512}
    path = write_record("million", settings, {"after": figures, "before": before["figures"]} if before else figures)
    for step in STEPS:
        peak, seconds = many[step]["peak_anonymous_bytes"] / 2**20, many[step]["seconds"]
        print(f"{step:8} {peak:8.0f} MiB, {figures[step]['bytes_a_row']:6} bytes a row, {seconds:6.0f} s")
    print(path)


def compare(few: dict[str, Any], many: dict[str, Any], more_rows: int) -> dict[str, Any]:
    growth = many["peak_anonymous_bytes"] - few["peak_anonymous_bytes"]
    return {"few": few, "many": many, "bytes_a_row": round(growth / more_rows, 1)}


def run_all(directory: Path, rows: int) -> dict[str, Any]:
    from tests.small_world import make_small_world

    project = make_small_world(directory, 1)
    project.write_text(project.read_text(encoding="utf-8").replace("clusters: 3", f"clusters: {CLUSTERS}"))
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {"instruction": f"Add {number} to the argument.", "output": f"lambda x: x + {number}"}
            file.write(json.dumps(row) + "\n")
    found = {}
    for step in STEPS:
        command = [sys.executable, "-m", __spec__.name, "--step", step, "--directory", str(directory)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[step] = json.loads(done.stdout)
        print(rows, step, found[step], file=sys.stderr, flush=True)
    return found


def measure(step: str, project: Path) -> dict[str, Any]:
    from codetune.launch.environment import prepare_process

    prepare_process()
    import codetune.model.likelihood
    from codetune.run_status import run_status
    from codetune.stages.dataset import ensure_examples
    from codetune.stages.embed import EMBED
    from codetune.stages.runner import run_stage
    from codetune.stages.score import SCORE
    from codetune.stages.select import SELECT
    from tests.small_world import context_of

    codetune.model.likelihood.CausalScorer = InstantScorer  # type: ignore[assignment,misc]
    context = context_of(project, score__tokens_per_batch=8192, embed__batch_size=512)
    work = {
        "examples": lambda: ensure_examples(context),
        "score": lambda: run_stage(context, SCORE),
        "embed": lambda: run_stage(context, EMBED),
        "select": lambda: run_stage(context, SELECT),
        "status": lambda: run_status(context),
    }
    before = anonymous_bytes()
    with Sampler() as sampler:
        began = time.monotonic()
        work[step]()
        seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "anonymous_bytes_before": before,
        "peak_anonymous_bytes": sampler.peak,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


class InstantScorer:
    """Likelihoods that cost nothing, different for every row."""

    window = 4096

    def __init__(self, *_: object) -> None: ...

    def nll(self, spans: Sequence[Any]) -> list[float | None]:
        return [1 + sum(span.tokens) % 997 / 997 + (span.start == 1) for span in spans]


class Sampler:
    """The peak of `anonymous_bytes` during the block, sampled by a thread."""

    def __enter__(self) -> Sampler:
        self.peak, self._end = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """The memory of this process that no file backs. Raises SystemExit on a kernel that does not report it."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not report RssAnon in /proc/PID/status")


if __name__ == "__main__":
    main()
