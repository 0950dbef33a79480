"""Processes and their surroundings: shards, threads, and what the environment tells libraries. The one module
that reads or writes environment variables. Several processes on one machine or many are not in this version.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from codetune.errors import UsageError

Shard = tuple[int, int]  # (index, count)

# Libraries that speak on their own, ask for terminals, or count their users. Whoever set one of these keeps it.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}

TALKATIVE = ("bitsandbytes",)  # warns on every CPU about a kernel that nobody asked for


def prepare_process() -> None:
    """What must stand in the environment before torch and transformers are imported: quiet libraries, and the same
    number of threads in every process of a run (torchrun would set 1, and sums over other thread counts differ)."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for logger in TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
    # Threads that wait by spinning take the cores from each other as soon as anything else runs there: a training step
    # of a tiny model with two threads on two busy cores took 1.7 s, and 0.4 s with this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(thread_count())


def user_cache() -> Path:
    """Where things are kept that any run may use again: expected outputs of benchmarks."""
    named = os.environ.get("CODETUNE_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codetune"


def thread_count() -> int:
    """Cores that this process may use, at most 16: a small model gains nothing from more."""
    return min(len(os.sched_getaffinity(0)), 16)


def parse_shard(text: str) -> Shard:
    """
    >>> parse_shard("3/8")
    (3, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UsageError(f"--shard {text}: expected I/N, two whole numbers, such as --shard 0/8")
    index, count = int(match[1]), int(match[2])
    if count == 0:
        raise UsageError(f"--shard {text}: no shards at all; expected N of at least 1, such as --shard 0/1")
    if index >= count:
        raise UsageError(f"--shard {text}: shards count from 0; expected I from 0 to {count - 1}")
    return index, count
