"""Processes and their surroundings: shards, threads, which of several processes this one is, and what the environment
tells libraries. The one module that reads or writes environment variables; `workers.py` starts processes and
watches them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from codetune.errors import UsageError
from codetune.records import ALONE, Rank

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
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # warnings with stack traces about connections to ranks that are gone
    "TOKENIZERS_PARALLELISM": "true",  # said aloud, so that they do not warn of processes that are forked
}

# bitsandbytes warns on every CPU about a kernel that nobody asked for; DeepSpeed, that there is no GPU. The latter sets
# its level when it is imported, so that only a filter lasts.
TALKATIVE = ("bitsandbytes", "DeepSpeed")
# What torchrun, accelerate and deepspeed tell each process that they start, and we ours.
RANK, WORLD, LOCAL_RANK, LOCAL_WORLD = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
WORKER_TASK = "CODETUNE_WORKER_TASK"


@dataclass(frozen=True, slots=True)
class Node:
    """Which of several machines this is, where the user starts the command once on each."""

    rank: int
    count: int


@dataclass(frozen=True, slots=True)
class StoreAddress:
    host: str
    port: int
    is_agents: bool  # kept by torchrun's agent, not by rank 0


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker is told when it is started: the file that says what to do, and where to speak to its command."""

    job: Path
    descriptor: int


def prepare_process() -> None:
    """What must stand in the environment before torch and transformers are imported: quiet libraries, and the same
    number of threads in every process of a run (torchrun would set 1, and sums over other thread counts differ)."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for logger in TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
        logging.getLogger(logger).addFilter(_is_error)
    # Threads that wait by spinning take the cores from each other as soon as anything else runs there: a training step
    # of a tiny model with two threads on two busy cores took 1.7 s, and 0.4 s with this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(thread_count())
    _adopt_slurm(os.environ)


def user_cache() -> Path:
    """Where things are kept that any run may use again: expected outputs of benchmarks."""
    named = os.environ.get("CODETUNE_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codetune"


def thread_count() -> int:
    """Cores that this process may use, at most 16: a small model gains nothing from more."""
    return min(len(os.sched_getaffinity(0)), 16)


def current_rank() -> Rank:
    """As a launcher has told this process: the user's own (torchrun, accelerate, srun), or this command for its
    workers. Without one, the process is alone."""
    try:
        said = [int(os.environ[name]) for name in (RANK, WORLD, LOCAL_RANK)]
    except KeyError:  # some schedulers set two of them, and mean machines
        return ALONE
    except ValueError as why:
        raise UsageError(
            f"{RANK}, {WORLD} and {LOCAL_RANK} in the environment are not all numbers ({why}). Expected: what torchrun "
            "sets. Unset them, or start the command with torchrun"
        ) from None
    rank, count, local_rank = said
    return Rank(rank, count, local_rank, int(os.environ.get(LOCAL_WORLD, count)))


@contextlib.contextmanager
def single_rank_environment() -> Iterator[Rank]:
    """Lets this one process look like a launcher's: what shares a model over processes wants to be told of them, also
    where there is one (to use the CPU's memory as well, say)."""
    told = {
        RANK: "0",
        WORLD: "1",
        LOCAL_RANK: "0",
        LOCAL_WORLD: "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield ALONE
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def store_address() -> StoreAddress:
    """Where the store of all ranks is, as torchrun, srun or the command have set it."""
    return StoreAddress(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def current_node(count: int) -> Node:
    """This machine among the `count` of `launch.nodes`, as NODE_RANK or Slurm say. Raises UsageError where neither
    does."""
    if count == 1:
        return Node(0, 1)
    said = os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID"))
    if said is None or not said.isdigit() or int(said) >= count or not os.environ.get("MASTER_ADDR"):
        raise UsageError(
            f"launch.nodes is {count}, and NODE_RANK (now {said}) and MASTER_ADDR (now "
            f"{os.environ.get('MASTER_ADDR')}) do not say which machine this is and where the first one is. Start the "
            f"command once on each: MASTER_ADDR=first-host NODE_RANK=0 codetune ..., up to NODE_RANK={count - 1}; or "
            "with srun --ntasks-per-node=1"
        )
    return Node(int(said), count)


def worker_environment(local_rank: int, local_count: int, where: Node, worker_task: WorkerTask) -> Mapping[str, str]:
    """What a worker of this command finds in its environment: the same as from torchrun, and what to do."""
    told: dict[str, object] = {
        RANK: where.rank * local_count + local_rank,
        WORLD: where.count * local_count,
        LOCAL_RANK: local_rank,
        LOCAL_WORLD: local_count,
        WORKER_TASK: f"{worker_task.descriptor}:{worker_task.job}",
    }
    meeting = {"MASTER_ADDR": "127.0.0.1"} if where.count == 1 else {}
    port = {"MASTER_PORT": os.environ.get("MASTER_PORT", "29500")}
    return {**os.environ, **meeting, **port, **{name: str(value) for name, value in told.items()}}


def worker_task() -> WorkerTask | None:
    """What a worker was started for; None in a command."""
    said = os.environ.pop(WORKER_TASK, None)
    if said is None:
        return None
    descriptor, _, job = said.partition(":")
    return WorkerTask(Path(job), int(descriptor))


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


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Tells a process that srun started what torchrun would: several tasks on a machine are the ranks themselves; one
    task on each is a command, which starts its own workers. (A batch script outside srun has no step, and is alone.)"""
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
    """
    >>> _first_host("gpu[03-07,11],cpu1"), _first_host("one,two")
    ('gpu03', 'one')
    """
    found = re.match(r"([^\[,]*)(?:\[(\w+))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else ""
