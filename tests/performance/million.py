"""A million short rows through score, embed, select and status: what each keeps in memory.

    python -m tests.performance.million [--rows 1000000] [--few 50000] [--directory DIR]

The flow is the real one, data set to sealed artefacts; the network is a fake that costs nothing, the embedder the
offline one. Each stage runs in a process of its own, once with few rows and once with many. Memory is what no file
stands behind (RssAnon, sampled every 5 ms): the kernel takes mapped files back when it needs the room. Needs some 3 GB
of disk; a quarter of an hour of one core."""

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

STAGES = ("score", "embed", "select", "status")
CLUSTERS = 4


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--few", type=int, default=50_000)
    arguments.add_argument("--directory", type=Path)
    arguments.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.stage:
        print(json.dumps(measure(given.stage, given.directory / "codetune.yaml")))
        return
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        few, many = (run_all(Path(name) / str(rows), rows) for rows in (given.few, given.rows))
    from tests.performance.record import write_record

    figures = {
        stage: {
            "few": few[stage],
            "many": many[stage],
            "bytes_a_row": round(
                (many[stage]["peak_anonymous_bytes"] - few[stage]["peak_anonymous_bytes"]) / (given.rows - given.few), 1
            ),
        }
        for stage in STAGES
    }
    settings = {"rows": given.rows, "few": given.few, "clusters": CLUSTERS, "one_copy_of_the_vectors_bytes_a_row": 512}
    path = write_record("million", settings, figures)
    for stage in STAGES:
        peak, seconds = many[stage]["peak_anonymous_bytes"] / 2**20, many[stage]["seconds"]
        print(f"{stage:7} {peak:8.0f} MiB, {figures[stage]['bytes_a_row']:6} bytes a row, {seconds:6.0f} s")
    print(path)


def run_all(directory: Path, rows: int) -> dict[str, Any]:
    from tests.small_world import make_small_world

    project = make_small_world(directory, 1)
    project.write_text(project.read_text(encoding="utf-8").replace("clusters: 3", f"clusters: {CLUSTERS}"))
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {"instruction": f"Add {number} to the argument.", "output": f"lambda x: x + {number}"}
            file.write(json.dumps(row) + "\n")
    found = {}
    for stage in STAGES:
        command = [sys.executable, "-m", __spec__.name, "--stage", stage, "--directory", str(directory)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[stage] = json.loads(done.stdout)
        print(rows, stage, found[stage], file=sys.stderr, flush=True)
    return found


def measure(stage: str, project: Path) -> dict[str, Any]:
    from codetune.launch.environment import prepare_process

    prepare_process()
    import codetune.model.likelihood
    from codetune import workflow
    from tests import pipeline
    from tests.small_world import context_of

    codetune.model.likelihood.CausalScorer = InstantScorer  # type: ignore[assignment,misc]
    context = context_of(project, score__tokens_per_batch=8192, embed__batch_size=512)
    work = {
        "score": lambda: pipeline.score(context, None),
        "embed": lambda: pipeline.embed(context, None),
        "select": lambda: pipeline.select(context),
        "status": lambda: workflow.status(context),
    }
    before = anonymous_bytes()
    with Sampler() as sampler:
        began = time.monotonic()
        work[stage]()
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
    """The greatest that `anonymous_bytes` came to, looked at from a thread."""

    def __enter__(self) -> Sampler:
        self.peak, self._ends = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ends.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell RssAnon")


if __name__ == "__main__":
    main()
