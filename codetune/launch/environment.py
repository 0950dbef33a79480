"""Environment variables -> the rank, machine and threads of this process; and the variables that libraries, and the
workers of this command, need. No other module reads or writes the environment, but for the adapters that
the architecture test lists. Starts no process; `workers.py` does."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.errors import UsageError
from codetune.records import ALONE, Rank

Shard = tuple[int, int]  # (index, count)

# Switch off progress bars, notices and telemetry of libraries. A variable that the user has set keeps its value.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # warnings with stack traces about connections to ranks that are gone
    "TOKENIZERS_PARALLELISM": "true",  # its default, but unset it warns in forked processes
}

# bitsandbytes warns on every CPU about a missing kernel, DeepSpeed about a missing GPU. DeepSpeed sets its level when
# it is imported, so a filter is needed as well.
WARNING_LOGGERS = ("bitsandbytes", "DeepSpeed")
# The variables that torchrun, accelerate and deepspeed set for each process; the command sets them for its workers.
RANK, WORLD, LOCAL_RANK, LOCAL_WORLD = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
AUTO_SHARD = "auto"
# The libraries make a million objects that stay. With Python's threshold of 700 new objects, the collections while they
# are imported take a tenth of the start of `train` (0.6 of 5.9 s of processor time).
OBJECTS_BEFORE_COLLECTION = 10_000
WORKER_TASK = "CODETUNE_WORKER_TASK"
GPUS = "CUDA_VISIBLE_DEVICES"
COMPLETE = "_CODETUNE_COMPLETE"  # set by the completion of a shell


@dataclass(frozen=True, slots=True)
class Node:
    """One of several machines on each of which the user starts the command once."""

    rank: int
    count: int


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """The task of a worker: the file of its job, and the pipe for its events."""

    job: Path
    descriptor: int  # of the pipe


def prepare_process() -> None:
    """Sets the environment that torch and transformers read when they are imported: quiet libraries, and the same
    number of threads in every process of a run (torchrun sets 1, and sums over other thread counts differ). Has garbage
    collected less often."""
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for logger in WARNING_LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
        logging.getLogger(logger).addFilter(_is_error)
    # Threads that wait actively keep busy cores from other work: a training step of a tiny model with two threads on
    # two busy cores took 1.7 s, and 0.4 s with this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(thread_count())
    _adopt_slurm(os.environ)


def user_cache() -> Path:
    """The directory of what all runs share: expected outputs of benchmarks."""
    named = os.environ.get("CODETUNE_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codetune"


def begun_assignment() -> str | None:
    """The `KEY=VALUE` of a `--set` that bash asks to complete; None where another shell, or nobody, asks. bash breaks
    words at `=`, so that typer would take KEY alone for the assignment."""
    if os.environ.get(COMPLETE) != "complete_bash":
        return None
    words = os.environ.get("COMP_WORDS", "").split("\n")[: int(os.environ.get("COMP_CWORD", "0")) + 1]
    match words:
        case [*_, "--set", key, "="] | [*_, "--set", "=", key, "="]:
            return f"{key}="
        case [*_, "--set", key, "=", value] | [*_, "--set", "=", key, "=", value]:
            return f"{key}={value}"
    return None


def thread_count() -> int:
    """The number of cores that this process may use, at most 16: a small model gains nothing from more."""
    return min(len(os.sched_getaffinity(0)), 16)


def current_rank() -> Rank:
    """The rank that torchrun, accelerate, srun, or the command of a worker has given this process; ALONE without one.
    Raises UsageError where the variables are not numbers."""
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in (RANK, WORLD, LOCAL_RANK))
    except KeyError:  # some schedulers set only RANK and WORLD_SIZE, of machines
        return ALONE
    except ValueError as why:
        raise UsageError(
            f"{RANK}, {WORLD} and {LOCAL_RANK} in the environment are not all numbers ({why}). Expected: what torchrun "
            "sets. Unset them, or start the command with torchrun"
        ) from None
    return Rank(rank, world_size, local_rank, int(os.environ.get(LOCAL_WORLD, world_size)))


@contextlib.contextmanager
def single_rank_environment() -> Iterator[Rank]:
    """Sets the variables of a launcher that has started one process, and restores them afterwards: FSDP and ZeRO need
    them for a single process as well (to offload to the CPU's memory, for example)."""
    variables = {
        RANK: "0",
        WORLD: "1",
        LOCAL_RANK: "0",
        LOCAL_WORLD: "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield ALONE
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def store_address() -> tuple[str, int, bool]:
    """Host and port of the TCP store of all ranks, and whether torchrun's agent keeps it, not rank 0."""
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_agents


def current_node(count: int) -> Node:
    """This machine among the `count` of `launch.nodes`, by NODE_RANK or SLURM_NODEID. Raises UsageError where neither
    is a number below `count`, or MASTER_ADDR is missing."""
    if count == 1:
        return Node(0, 1)
    node_rank = os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID"))
    if node_rank is None or not node_rank.isdigit() or int(node_rank) >= count or not os.environ.get("MASTER_ADDR"):
        raise UsageError(
            f"launch.nodes is {count}, and NODE_RANK (now {node_rank}) and MASTER_ADDR (now "
            f"{os.environ.get('MASTER_ADDR')}) do not say which machine this is and where the first one is. Start the "
            f"command once on each: MASTER_ADDR=first-host NODE_RANK=0 codetune ..., up to NODE_RANK={count - 1}; or "
            "with srun --ntasks-per-node=1"
        )
    return Node(int(node_rank), count)


def named_gpus() -> Sequence[str] | None:
    """The GPUs that this process may see, as the user or a scheduler has named them; None where nobody has."""
    named = os.environ.get(GPUS)
    return None if named is None else [gpu.strip() for gpu in named.split(",") if gpu.strip()]


def worker_environment(local_rank: int, local_world_size: int, node: Node, task: WorkerTask) -> Mapping[str, str]:
    """The environment of a worker of this command: the variables that torchrun would set, and its task."""
    variables: dict[str, object] = {
        RANK: node.rank * local_world_size + local_rank,
        WORLD: node.count * local_world_size,
        LOCAL_RANK: local_rank,
        LOCAL_WORLD: local_world_size,
        "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),
        WORKER_TASK: _said(task),
    }
    if node.count == 1:
        variables["MASTER_ADDR"] = "127.0.0.1"
    return {**os.environ, **{name: str(value) for name, value in variables.items()}}


def lone_environment(task: WorkerTask, gpus: Sequence[str]) -> Mapping[str, str]:
    """The environment of a worker that is no rank of a group: its task, and the GPUs that it sees, all of them where
    none is named."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in (RANK, WORLD, LOCAL_RANK, LOCAL_WORLD)
    }
    return {**inherited, **({GPUS: ",".join(gpus)} if gpus else {}), WORKER_TASK: _said(task)}


def _said(task: WorkerTask) -> str:
    return f"{task.descriptor}:{task.job}"


def worker_task() -> WorkerTask | None:
    """The task of this worker, taken out of the environment so that its own children do not see it; None in a
    command."""
    text = os.environ.pop(WORKER_TASK, None)
    if text is None:
        return None
    descriptor, _, job = text.partition(":")
    return WorkerTask(Path(job), int(descriptor))


def parse_shard(text: str) -> Shard:
    """The index and count of `--shard I/N`, or of `--shard auto` in a job array of Slurm. Raises UsageError where I is
    not below N.

    >>> parse_shard("3/8")
    (3, 8)
    """
    if text == AUTO_SHARD:
        return _array_shard(os.environ)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UsageError(
            f"--shard {text}: expected I/N, two whole numbers, such as --shard 0/8; or auto, in a job array of Slurm"
        )
    index, count = int(match[1]), int(match[2])
    if count == 0:
        raise UsageError(f"--shard {text}: no shards at all; expected N of at least 1, such as --shard 0/1")
    if index >= count:
        raise UsageError(f"--shard {text}: shards count from 0; expected I from 0 to {count - 1}")
    return index, count


def _array_shard(environment: Mapping[str, str]) -> Shard:
    """The place of this task among those of its job array. Raises UsageError where there is no array, and where its
    numbers have gaps: the number of the shards is then more than that of the tasks.

    >>> _array_shard({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"})
    (2, 8)
    """
    try:
        task, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT"))
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        last = int(environment.get("SLURM_ARRAY_TASK_MAX", first + count - 1))
    except (KeyError, ValueError):
        raise UsageError(
            f"--shard {AUTO_SHARD}: SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT are not set to numbers. Expected: "
            "a task of a job array. Submit one: sbatch --array=0-7 SCRIPT; or name the shard: --shard 0/8"
        ) from None
    if last - first + 1 != count or not first <= task <= last:
        raise UsageError(
            f"--shard {AUTO_SHARD}: the job array has {count} tasks with numbers from {first} to {last}, and this is "
            f"{task}. Expected: no gaps. Name how many shards there are: --shard $SLURM_ARRAY_TASK_ID/N"
        )
    return task - first, count


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Sets the variables of torchrun in a process that srun started. Several tasks on a machine are ranks; one task on
    each machine is a command, which starts its own workers. A batch script outside srun has no step, and sets none."""
    if "SLURM_STEP_NUM_TASKS" not in environment or RANK in environment:
        return
    hosts, job = environment.get("SLURM_STEP_NODELIST", ""), environment.get("SLURM_JOB_ID", "")
    environment.setdefault("MASTER_ADDR", _first_host(hosts))
    environment.setdefault("MASTER_PORT", str(20_000 + int(job or 0) % 20_000))
    tasks, machines = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks > machines:
        environment[RANK] = environment["SLURM_PROCID"]
        environment[WORLD] = str(tasks)
        environment[LOCAL_RANK] = environment["SLURM_LOCALID"]
        environment[LOCAL_WORLD] = str(tasks // machines)


def _first_host(hosts: str) -> str:
    """The first of a list of hosts in Slurm's short form.

    >>> _first_host("gpu[03-07,11],cpu1"), _first_host("one,two")
    ('gpu03', 'one')
    """
    found = re.match(r"([^\[,]*)(?:\[(\w+))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else ""
