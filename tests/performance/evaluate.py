"""Judging against `evalplus.evaluate`: the same samples and workers, warm caches, side by side in one run.

    python -m tests.performance.evaluate BENCHMARK.jsonl.gz SAMPLES.jsonl [--workers 2] [--rounds 2] [--sandbox auto]

EvalPlus runs as its own command does, in a process of its own; ours is timed as `codetune evaluate` spends its time,
the search for a sandbox and the start of the workers included. Writes tests/performance/results/evaluate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from codetune.benchmark.benchmarks import EvalPlusDownload, read_problems, spec_of
from codetune.benchmark.evalplus_format import as_solution, read_samples, sample_row
from codetune.benchmark.judge import judge, prepare
from codetune.benchmark.sanitize import sanitize
from codetune.records import Problem, Solution
from codetune.sandbox.probe import choose_tier

RESULT = Path(__file__).with_name("results") / "evaluate.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("samples", type=Path, help="EvalPlus format; sanitized before either judges them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sandbox", default="auto")
    wanted = parser.parse_args()
    problems = read_problems(wanted.benchmark)
    tasks = {problem.task_id: problem for problem in problems}
    samples = [sanitize(tasks[sample.task_id], sample).solution for sample in read_samples(wanted.samples)]
    solutions = [as_solution(tasks[sample.task_id], sample) for sample in samples]
    with tempfile.TemporaryDirectory() as scratch:
        record = compare(wanted, problems, solutions, Path(scratch))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def compare(
    wanted: argparse.Namespace, problems: Sequence[Problem], solutions: Sequence[Solution], scratch: Path
) -> dict[str, Any]:
    """Runs both in turn, so that both have the same machine; the first round of each fills its cache and is not
    counted."""
    ours, theirs = [], []
    for number in range(wanted.rounds + 1):
        seconds_ours, verdicts, tier = run_ours(wanted, problems, solutions, scratch)
        seconds_theirs, statuses = run_evalplus(wanted, problems, solutions, scratch)
        if number:
            ours.append(seconds_ours)
            theirs.append(seconds_theirs)
    different = sorted(task_id for task_id in verdicts if verdicts[task_id] != statuses[task_id])
    return {
        "benchmark": wanted.benchmark.name,
        "samples": len(solutions),
        "workers": wanted.workers,
        "sandbox": tier,
        "codetune_seconds": ours,
        "evalplus_seconds": theirs,
        "times_as_fast": statistics.median(theirs) / statistics.median(ours),
        "passed": [sum(column) for column in zip(*verdicts.values(), strict=True)],
        "verdicts_that_differ": different,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "evalplus": version("evalplus"),
    }


def run_ours(
    wanted: argparse.Namespace, problems: Sequence[Problem], solutions: Sequence[Solution], scratch: Path
) -> tuple[float, dict[str, tuple[bool, bool]], str]:
    expected = scratch / "expected"
    for _ in prepare(problems, expected, wanted.workers, choose_tier(wanted.sandbox)):
        pass
    began = time.perf_counter()
    tier = choose_tier(wanted.sandbox)
    verdicts = list(judge(problems, solutions, expected, wanted.workers, tier))
    seconds = time.perf_counter() - began
    return seconds, {found.task_id: (found.base == "pass", found.plus == "pass") for found in verdicts}, tier


def run_evalplus(
    wanted: argparse.Namespace, problems: Sequence[Problem], solutions: Sequence[Solution], scratch: Path
) -> tuple[float, dict[str, tuple[bool, bool]]]:
    """Runs the evalplus command in a fresh directory, since it reuses an old result, and with a cache of its own."""
    spec = spec_of(problems[0].task_id)
    assert isinstance(spec.source, EvalPlusDownload), "EvalPlus' command knows its own benchmarks only"
    directory = scratch / "evalplus"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    rows = "".join(json.dumps(sample_row(solution)) + "\n" for solution in solutions)
    (directory / "samples.jsonl").write_text(rows, encoding="utf-8")
    command = [sys.executable, "-m", "evalplus.evaluate", spec.name, str(directory / "samples.jsonl")]
    surroundings = {
        **os.environ,
        spec.source.variable: str(wanted.benchmark.resolve()),
        "XDG_CACHE_HOME": str(scratch / "cache"),
    }
    began = time.perf_counter()
    subprocess.run(
        [*command, "--parallel", str(wanted.workers)],
        check=True,
        env=surroundings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    found = json.loads((directory / "samples_eval_results.json").read_text(encoding="utf-8"))["eval"]
    return seconds, {
        task_id: (rows[0]["base_status"] == "pass", rows[0]["base_status"] == rows[0]["plus_status"] == "pass")
        for task_id, rows in found.items()
    }


if __name__ == "__main__":
    main()
