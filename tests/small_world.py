"""A project of some dozen rows with a random two-layer Llama: for tests of the flow, where figures mean nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from codetune.cli import app
from codetune.project.file import read_project
from codetune.stages.runner import open_context
from codetune.stages.stage import RunContext
from tests.model.builders import byte_tokenizer, tiny_model

PROJECT = """\
name: small
dataset: {path: data.jsonl, instruction: instruction, response: output}
model: {path: base, chat_format: deepseek, dtype: float32}
score: {max_length: 256, tokens_per_batch: 512}
embed: {model: hashing, batch_size: 8}
select: {clusters: 3, max_ifd: 100.0, mismatch: ifd, deduplicate: none, decontaminate: [], checks: []}
train: {max_length: 256, epochs: 1, per_device_batch_size: 4, gradient_accumulation_steps: 1, warmup_steps: 0,
        learning_rate: 1e-3, gradient_checkpointing: false, logging_steps: 1}
generate: {max_new_tokens: 8}
evaluate: {benchmarks: [tasks.jsonl]}
"""


def rows(count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"Add {n} to the argument.", "output": f"def add_{n}(x):\n    return x + {n}\n" * (1 + n % 5)}
        for n in range(count)
    ]


def make_small_world(directory: Path, count: int = 60) -> Path:
    """The project file in `directory`, with data set, base model and benchmark beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "data.jsonl", rows(count))
    write_rows(directory / "tasks.jsonl", [_task(n) for n in range(3)])
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.save_pretrained(directory / "base")
    tiny_model("llama", len(tokenizer), hidden=32).save_pretrained(directory / "base")
    project = directory / "codetune.yaml"
    project.write_text(PROJECT, encoding="utf-8")
    return project


def write_rows(path: Path, documents: list[dict[str, Any]] | list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def context_of(project: Path, **flags: Any) -> RunContext:
    """A context as a command would have it; keywords are settings, with two underscores for the dot."""
    return open_context(read_project(project, [], {key.replace("__", "."): value for key, value in flags.items()}))


def run_codetune(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """A command as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "codetune", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_codetune_here(*arguments: str, cwd: Path) -> int:
    """A command in this process, which has imported the libraries already: its exit status, where no error ends it."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def await_end(pids: list[int]) -> None:
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until, "a worker is left behind"
        time.sleep(0.05)


def task(number: int, *, begun: bool) -> dict[str, Any]:
    """One to be solved, or, not `begun`, one that its prompt solves already, whatever follows."""
    prompt = f"def add_{number}(x):\n    return x + {number}\n\n\ndef main():\n"
    solved = {**_task(number), "task_id": f"Apart/{number}", "prompt": prompt, "canonical_solution": "    pass\n"}
    return {**_task(number), "task_id": f"Apart/{number}"} if begun else solved


def _task(number: int) -> dict[str, Any]:
    return {
        "task_id": f"Small/{number}",
        "prompt": f'def add_{number}(x):\n    """Add {number}."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return x + {number}\n",
        "base_input": [[1], [2]],
        "plus_input": [[-1], [0]],
        "atol": 0,
        "contract": "",
    }
