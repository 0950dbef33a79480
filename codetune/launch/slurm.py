"""The jobs of Slurm: their scripts, and their submission by `sbatch`.

No path and no command line stands in a line that Slurm reads: Slurm's own quoting differs from the shell's. A script
is submitted from its own directory, where the logs go, and changes to the user's directory itself. Knows nothing of
stages: which jobs there are is decided in `slurm_jobs.py`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetune.errors import CodetuneError, UsageError, first_line
from codetune.project.sections import Slurm


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job: a command of codetune and what it needs. Begins after the jobs `after` have ended, or ended well."""

    name: str  # of its script; the name of the job is the project's with this one
    arguments: Sequence[str]  # of codetune
    gpus: int | None  # of each machine
    nodes: int = 1
    shards: Sequence[int] = ()  # the numbers of a job array, of `shard_count`; none: no array
    shard_count: int = 1
    after: Sequence[str] = ()
    condition: Literal["afterok", "afterany"] = "afterok"

    @property
    def array(self) -> str:
        """The numbers of the array as Slurm reads them.

        >>> SlurmJob("score", [], None, shards=[0, 1, 2, 5, 7, 8]).array
        '0-2,5,7-8'
        """
        ranges: list[tuple[int, int]] = []
        for number in self.shards:
            joins = bool(ranges) and ranges[-1][1] == number - 1
            ranges = [*ranges[:-1], (ranges[-1][0], number)] if joins else [*ranges, (number, number)]
        return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def job_script(job: SlurmJob, project: str, settings: Slurm, directory: Path) -> str:
    """The text of a batch script for a job of the project of that name; its command runs in `directory`."""
    command = shlex.join([sys.executable, "-m", "codetune", *job.arguments])
    if job.shards:
        command += f' --shard "$SLURM_ARRAY_TASK_ID/{job.shard_count}"'
    if job.nodes > 1:  # since Slurm 22.05 srun does not take over the cores of a task
        cores = "${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}"
        command = f"srun --ntasks-per-node=1 {cores} {command}"
    lines = [f"#SBATCH {option}" for option in (*settings.options, *_options(job, project, settings))]
    return "\n".join(["#!/bin/bash", *lines, f"cd -- {shlex.quote(str(directory))} || exit 1", f"exec {command}", ""])


def _options(job: SlurmJob, project: str, settings: Slurm) -> Iterator[str]:
    yield f"--job-name=codetune-{project}-{job.name}"
    yield f"--output=%x-{'%A_%a' if job.shards else '%j'}.log"
    yield "--open-mode=append"
    yield "--requeue"  # every command continues where it was
    yield "--kill-on-invalid-dep=yes"
    # A training writes its checkpoint before the time is over; srun passes the signal on to the other machines.
    yield f"--signal={'' if job.nodes > 1 else 'B:'}TERM@300"
    for name, value in (("account", settings.account), ("partition", settings.partition), ("time", settings.time)):
        if value is not None:
            yield f"--{name}={value}"
    if job.gpus is not None:
        yield f"--gpus-per-node={job.gpus}"
    if job.nodes > 1:
        yield f"--nodes={job.nodes}"
        yield "--ntasks-per-node=1"
    if job.shards:
        yield f"--array={job.array}"


def submit_script(script: Path, dependency: str) -> int:
    """Submits a script from its directory and returns the number of the job. Raises UsageError where there is no
    `sbatch`, CodetuneError with its message where it refuses."""
    needs = [f"--dependency={dependency}"] if dependency else []
    answer = _ask(["sbatch", "--parsable", *needs, script.name], script.parent)
    found = re.fullmatch(r"(\d+)(?:;.*)?", answer.strip())  # with the name of the cluster where there are several
    if found is None:
        raise CodetuneError(f"sbatch --parsable answered {answer!r} to {script}. Expected: the number of a job")
    return int(found[1])


def queued_jobs() -> set[int]:
    """The numbers of this user's jobs that wait or run. Raises as `submit_script` does."""
    return {int(word) for word in _ask(["squeue", "--me", "--noheader", "--format=%F"], Path.cwd()).split()}


def _ask(command: Sequence[str], directory: Path) -> str:
    try:
        answer = subprocess.run(command, cwd=directory, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise UsageError(
            f"There is no {command[0]} on this machine. Expected: a machine that submits jobs to Slurm. Run the "
            "command there"
        ) from None
    if answer.returncode:
        why = first_line(CodetuneError(answer.stderr.strip() or f"exit status {answer.returncode}"))
        raise CodetuneError(f"{shlex.join(command)} failed: {why}. Fix what it names, then run the command again")
    return answer.stdout
