"""Everything that is to be measured on a GPU, in less than ten minutes: `make gpu`, or

    python -m tests.performance.gpu [--data DIRECTORY] [--only tests score train generate] [--rehearse]

Runs each part in a process of its own with a time limit; a part that fails or runs out of time does not stop the next.
The benchmarks write their records (results/*.json) while they run; `results/gpu.json` says after each part how it
ended. `--rehearse` runs the same commands in small sizes on a CPU, into a directory that is thrown away."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.performance.record import DIRECTORY_VARIABLE, write_record

DATA = Path(os.environ.get("CODETUNE_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PAD_MODES = "dynamic_pad;dynamic_pack;paper_pack"
COMPILED = "dynamic_pack, compiled"  # last, because its first step waits for the compiler


@dataclass(frozen=True, slots=True)
class Part:
    """A command of this Python (`python -m ...`), how long it may take, and the same on a CPU for a rehearsal."""

    name: str
    seconds: int
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]


def parts(data: Path) -> list[Part]:
    score = ("tests.performance.score", "--data", str(data), "--turns", "1")
    train = ("tests.performance.train", "--data", str(data))
    humaneval = str(next(iter(sorted((data / "benchmarks").glob("HumanEvalPlus*"))), data))
    generate = ("tests.performance.generate", humaneval, "--rounds", "1")
    measured = f"{PAD_MODES};{COMPILED}"
    small, compiled = (
        (*train, "--size", "cpu", "--steps", "1", "--only", f"dynamic_pack;{other}")
        for other in ("dynamic_pad", COMPILED)
    )
    tests = ("pytest", "-p", "no:cacheprovider", "-q", "tests/gpu")
    return [
        Part("tests", 130, tests, tests),
        Part("score", 100, (*score, "--gpu", "--rows", "200"), (*score, "--rows", "4", "--shapes", "small-body")),
        Part("train 6.7b lora", 130, (*train, "--size", "6.7b", "--method", "lora", "--only", measured), small),
        Part("train 1.3b full", 120, (*train, "--size", "1.3b", "--method", "full", "--only", measured), compiled),
        Part("generate", 90, (*generate, "--size", "1.3B", "--size", "6.7B"), (*generate, "--size", "0.8M")),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--data", type=Path, default=DATA, help="directory with instruct/, tokenizers/, benchmarks/")
    arguments.add_argument("--only", nargs="*", help="parts whose names begin so")
    arguments.add_argument("--rehearse", action="store_true", help="on a CPU, in small sizes, keeping no record")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if given.rehearse:
            os.environ[DIRECTORY_VARIABLE] = directory
        sys.exit(0 if run(parts(given.data), given.only, given.rehearse) else 1)


def run(chosen: Sequence[Part], only: Sequence[str] | None, rehearse: bool) -> bool:
    """Runs the parts one after the other and writes `gpu.json` after each. Returns whether all ended well."""
    ends: dict[str, dict[str, object]] = {}
    for part in chosen:
        if only and not part.name.startswith(tuple(only)):
            continue
        began = time.monotonic()
        command, seconds = (part.rehearsal, 4 * part.seconds) if rehearse else (part.command, part.seconds)
        outcome = run_part(command, seconds)
        ends[part.name] = {"outcome": outcome, "seconds": round(time.monotonic() - began, 1), "limit": seconds}
        print(f"{part.name}: {json.dumps(ends[part.name])}", flush=True)
        write_record("gpu", {"rehearsal": rehearse}, ends)
    return all(end["outcome"] == "done" for end in ends.values())


def run_part(command: Sequence[str], seconds: int) -> str:
    """Returns `done`, `failed: exit status N` or `stopped: time limit`; stops the whole process group at the limit."""
    process = subprocess.Popen([sys.executable, "-m", *command], start_new_session=True)
    try:
        status = process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(stop, KeyboardInterrupt):
            raise
        return "stopped: time limit"
    return "done" if status == 0 else f"failed: exit status {status}"


if __name__ == "__main__":
    main()
