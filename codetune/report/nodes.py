"""`codetune doctor --nodes`: the ranks of a run on several machines, held against each other: that they reach each
other, their clocks, versions and project file, and a sum over all of them. Runs in every rank; rank 0 judges."""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch

from codetune import __version__
from codetune.console import quantity
from codetune.errors import WorkerError
from codetune.launch.devices import choose_device, gpu_name
from codetune.launch.dispatch import NODES_JOB, Job, WorkerContext, perform, process_count
from codetune.launch.environment import current_rank
from codetune.launch.process_group import ProcessGroup, rendezvous_store
from codetune.launch.workers import JSON
from codetune.project.sections import PROJECT_FILE, Project
from codetune.report.doctor import Finding
from codetune.report.requirements import installed_version

PATIENCE = timedelta(minutes=2)  # for a machine that does not come
CLOCK_SECONDS = 5.0  # clocks that differ by more give files times from the future
REDUCED_NUMBERS = 1 << 20
COMPARED = {
    "codetune": "pip install the same version of codetune on every machine",
    "python": "make the same virtual environment on every machine",
    "torch": "pip install the same version of torch on every machine",
    "transformers": "pip install the same version of transformers on every machine",
    "project": "put the project on a disk that every machine has, or copy it there",
    "gpu": "ask the scheduler for machines of one kind",
}
Facts = Mapping[str, Any]  # of one rank


def examine_nodes(project: Project, file: Path | None) -> list[Finding]:
    """What is found in the ranks that torchrun or srun has started, or in the processes of this machine. `file` is the
    project file. Raises WorkerError that names the machines which do not come."""
    if current_rank().world_size > 1:
        rendezvous_store(current_rank(), PATIENCE)
    where = (file or project.root / PROJECT_FILE).absolute()
    job = Job(NODES_JOB, project, {"file": str(where)})
    found = perform(job, process_count(project), lambda rank, message: None, examine_rank)
    return compare(cast("list[Facts]", found[0]))


def examine_rank(job: Job, worker: WorkerContext) -> JSON:
    """In every rank: its facts, and those of all others."""
    file = Path(cast("Mapping[str, str]", job.details)["file"])
    with worker.process_group() as group:
        group.barrier()
        clock = time.time()  # a barrier takes milliseconds
        seconds = _reduce(group)
        facts = {**_facts(file), "rank": group.member.rank, "clock": clock, "reduce_seconds": seconds}
        return [json.loads(text) for text in group.gather(json.dumps(facts))]


def compare(facts: Sequence[Facts]) -> list[Finding]:
    """A finding for each thing that should be alike, which names the hosts where it is not."""
    hosts = Counter(fact["host"] for fact in facts)
    reduced = max(fact["reduce_seconds"] for fact in facts)
    return [
        Finding("ranks", ", ".join(f"{count} on {host}" for host, count in hosts.items())),
        Finding("sum over all ranks", f"right, in {1000 * reduced:.0f} ms for {quantity(REDUCED_NUMBERS, 'number')}"),
        _clocks(facts),
        *(_alike(name, command, facts) for name, command in COMPARED.items()),
    ]


def _facts(file: Path) -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "codetune": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed_version("transformers") or "not installed",
        "project": hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "no project file",
        "gpu": gpu_name() or "none",
    }


def _reduce(group: ProcessGroup) -> float:
    """Seconds of a sum over all ranks, on their GPUs where they have them. Raises WorkerError where it is wrong."""
    numbers = torch.full((REDUCED_NUMBERS,), group.member.rank + 1.0, device=choose_device())
    began = time.perf_counter()
    group.sum_tensor(numbers)
    first, last = float(numbers[0]), float(numbers[-1])  # waits for the GPU
    seconds, expected = time.perf_counter() - began, group.count * (group.count + 1) / 2
    if (first, last) != (expected, expected):
        raise WorkerError(
            f"The sum over {group.count} ranks is {first:g} on {socket.gethostname()}. Expected: {expected:g}. Test "
            "the network between the machines, and the GPUs of this one: nvidia-smi -q -d ECC"
        )
    return seconds


def _clocks(facts: Sequence[Facts]) -> Finding:
    """Against the median: one clock that is wrong is named, not all others."""
    middle = sorted(fact["clock"] for fact in facts)[len(facts) // 2]
    off = {fact["host"]: fact["clock"] - middle for fact in facts if abs(fact["clock"] - middle) > CLOCK_SECONDS}
    if not off:
        return Finding("clocks", f"within {CLOCK_SECONDS:g} s of each other")
    found = ", ".join(f"{host} is {seconds:+.0f} s off" for host, seconds in off.items())
    return Finding("clocks", found, "wrong", "files get times from the future", "chronyc makestep")


def _alike(name: str, command: str, facts: Sequence[Facts]) -> Finding:
    """The value that most ranks have counts as right; of two with as many the one of rank 0."""
    values = Counter(fact[name] for fact in facts)
    usual, _ = values.most_common(1)[0]
    others = {fact["host"]: fact[name] for fact in facts if fact[name] != usual}
    if not others:
        return Finding(name, f"the same everywhere: {usual}")
    found = ", ".join(f"{host} has {value}" for host, value in others.items())
    return Finding(name, f"{found}; the others have {usual}", "wrong", "the ranks do not do the same work", command)
