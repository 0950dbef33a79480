"""A job of a stage -> its result in every process that works on it, whatever started these processes.

    one process         the command runs the job itself
    several             the command starts workers on this machine (workers.py), and shows their messages
    torchrun, srun, ... rank 0 of the ranks that the user started is the command, the others run the jobs it sends

The caller's `run_job` gets the job and a `WorkerContext`. Imports torch inside functions, so that a command with one
process and no GPU work never loads it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from codetune import console
from codetune.errors import CodetuneError, UsageError, writing_failed
from codetune.launch import workers
from codetune.launch.environment import Node, WorkerTask, current_node, current_rank, single_rank_environment
from codetune.launch.node_monitor import NodeMonitor, OnLost
from codetune.launch.workers import JSON, OnProgress, SendProgress, WorkerSpec
from codetune.project.sections import Project
from codetune.records import ALONE, Rank
from codetune.store.run_directory import project_document, project_of
from codetune.store.scratch import scratch_directory

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from codetune.launch.process_group import OpenStore, ProcessGroup

WORKER_COMMAND = (sys.executable, "-m", "codetune", "worker")  # the last word is for readers of `ps`
FINISHED_RANKS, RELEASE_SECONDS = "finished-ranks", 2.0  # ranks that failed never count themselves as finished
NODES_JOB = "doctor"  # in the place of a stage: the ranks hold themselves against each other
SWEEP_JOB = "sweep"  # in the place of a stage: a whole run, in a process of its own
_NO_JOB = "null"  # in the place of a job: there are no more


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """`open_store` opens the store through which the processes of a job form a group (None: there is one process);
    `send_progress` gives numbers to the command."""

    rank: Rank
    open_store: OpenStore | None
    send_progress: SendProgress

    @contextlib.contextmanager
    def process_group(self, *, even_single: bool = False) -> Iterator[ProcessGroup]:
        """The group of the ranks that run this job; with `even_single` one of torch.distributed for one rank as well,
        which FSDP and ZeRO need to offload to the CPU's memory."""
        from codetune.launch.process_group import join_process_group

        if self.open_store is not None or not even_single:
            with join_process_group(self.rank, self.open_store) as group:
                yield group
            return
        with (
            scratch_directory() as scratch,
            single_rank_environment() as rank,
            join_process_group(rank, lambda: _file_store(scratch, rank)) as group,
        ):
            yield group


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work of a stage. It reaches other processes as JSON."""

    stage: str
    project: Project
    details: Mapping[str, JSON]

    def to_json(self) -> str:
        return json.dumps({"stage": self.stage, "details": self.details, "project": project_document(self.project)})

    @classmethod
    def from_json(cls, text: str) -> Job:
        document = json.loads(text)
        return cls(document["stage"], project_of(document["project"]), document["details"])


RunJob = Callable[[Job, WorkerContext], JSON]


def perform(job: Job, processes: int, on_progress: OnProgress, run_job: RunJob) -> list[JSON]:
    """Runs the job in `processes` on this machine, or in the ranks of a launcher; returns the results by rank (of this
    machine, where there are several). Raises UsageError where the launcher started another number than the project
    says, and on every machine but the first."""
    rank, node = current_rank(), require_launch(job.project, job.stage, processes)
    if rank.world_size > 1:
        return _run_with_ranks(job, rank, on_progress, run_job)
    if processes * node.count == 1:
        context = WorkerContext(ALONE, None, lambda progress: on_progress(0, progress))
        return [_run(job, context, run_job, None)]
    return _start_workers(job.to_json(), processes, node, on_progress)


def run_independent_jobs(
    jobs: Sequence[Job], gpus: Sequence[Sequence[str]], names: Sequence[str]
) -> Iterator[tuple[int, CodetuneError | None]]:
    """Runs jobs that know nothing of each other, each in a process of its own, as many at a time as there are groups of
    `gpus`, those of one of them. Yields the index of each job that has ended, and its error. What a process
    writes is shown, each line behind the name of its job. Raises KeyboardInterrupt after all have saved their work."""

    def show(index: int, text: str) -> None:
        console.relay("".join(f"[{names[index]}] {line}\n" for line in text.splitlines()))

    with scratch_directory() as scratch:
        files = [scratch / f"job-{number}.json" for number in range(len(jobs))]
        for file, job in zip(files, jobs, strict=True):
            file.write_text(job.to_json(), encoding="utf-8")
        specs = [WorkerSpec(WORKER_COMMAND, 1, Node(0, 1), file) for file in files]
        yield from workers.run_independent_workers(specs, gpus, show)


def require_launch(project: Project, stage: str, processes: int) -> Node:
    """This machine, if it can begin a stage in so many processes. Raises UsageError if a launcher has started another
    number, if nothing says which machine this is, and on every machine but the first."""
    rank = current_rank()
    if rank.world_size > 1:
        if project.launch.processes != "auto" and processes != rank.local_world_size:
            raise UsageError(
                f"launch.processes is {processes}, and this command was started {rank.local_world_size} times on this "
                "machine. Expected: the same number. Set launch.processes: auto, or start it without a launcher"
            )
        return Node(0, 1)
    node = current_node(project.launch.nodes)
    if node.rank > 0:
        raise UsageError(
            f"This is machine {node.rank} of {node.count}, which follows the first one. Expected: a stage "
            f"by itself, started on all machines. Run the earlier stages on one machine, then: codetune {stage}"
        )
    return node


def process_count(project: Project) -> int:
    """The processes of one machine: `launch.processes`, or for `auto` one for each GPU, and 1 without a GPU."""
    if project.launch.processes != "auto":
        return project.launch.processes
    from codetune.launch.devices import count_gpus

    return current_rank().local_world_size if current_rank().world_size > 1 else max(1, count_gpus())


def run_worker(task: WorkerTask, run_job: RunJob) -> None:
    """The whole life of a worker process: runs its job, sends the result to the command, and exits."""
    with workers.events_to_command(task.descriptor) as send:
        text, rank = task.job.read_text(encoding="utf-8"), current_rank()
        open_store: OpenStore = lambda: _file_store(task.job.parent, rank)  # noqa: E731

        monitor = _node_monitor(rank, lambda error: send("error", workers.error_event(error)))
        if monitor.count > 1:
            open_store = _launcher_store
            if text == _NO_JOB:
                text = _read_key("job-1")
            elif rank.rank == 0:
                _launcher_store().set("job-1", text)
        context = WorkerContext(rank, open_store, lambda progress: send("progress", progress))
        result = _run(Job.from_json(text), context, run_job, monitor)
        monitor.stop()
        send("result", result)


def run_follower(run_job: RunJob) -> None:
    """The whole life of a rank, other than 0, of the user's launcher: runs the jobs that rank 0 sends, and exits."""
    rank, monitor, number = current_rank(), _rank_monitor(), 1
    with console.reserved_stdout():
        while (text := _read_key(f"job-{number}")) != _NO_JOB:
            context = WorkerContext(rank, _store_of_job(number), lambda progress: None)
            result = _run(Job.from_json(text), context, run_job, monitor)
            _launcher_store().set(f"result-{number}-{rank.rank}", json.dumps(result))
            number += 1
        monitor.stop()
        _launcher_store().add(FINISHED_RANKS, 1)
    workers.exit_process(0)


def run_follower_node(project: Project, node: Node) -> None:
    """Starts workers for the job of the first machine, where the user started the command on each machine."""
    _start_workers(_NO_JOB, process_count(project), node, lambda rank, progress: None)


def release_followers() -> None:
    """Lets the ranks of `run_follower` exit. Called at the end of the command, after an error as well."""
    if current_rank().world_size > 1:
        _rank_monitor().stop()
        store = _launcher_store()
        store.set(f"job-{store.add('jobs', 1)}", _NO_JOB)
        # Under srun rank 0 keeps the store: it must not exit before the others have read this key.
        until = time.monotonic() + RELEASE_SECONDS
        while store.add(FINISHED_RANKS, 0) < current_rank().world_size - 1 and time.monotonic() < until:
            time.sleep(0.01)


def _start_workers(text: str, processes: int, node: Node, on_progress: OnProgress) -> list[JSON]:
    with scratch_directory() as scratch:
        file = scratch / "job.json"
        file.write_text(text, encoding="utf-8")
        return workers.run_workers(WorkerSpec(WORKER_COMMAND, processes, node, file), on_progress, console.relay)


def _run_with_ranks(job: Job, rank: Rank, on_progress: OnProgress, run_job: RunJob) -> list[JSON]:
    store = _launcher_store()
    number = store.add("jobs", 1)
    store.set(f"job-{number}", job.to_json())
    context = WorkerContext(rank, _store_of_job(number), lambda progress: on_progress(0, progress))
    result = _run(job, context, run_job, _rank_monitor())
    return [result, *(json.loads(_read_key(f"result-{number}-{other}")) for other in range(1, rank.world_size))]


def _run(job: Job, context: WorkerContext, run_job: RunJob, monitor: NodeMonitor | None) -> JSON:
    if context.rank.world_size > 1:
        from codetune.launch.devices import take_gpu

        take_gpu(context.rank.local_rank)
    with monitor.guard() if monitor else contextlib.nullcontext():
        try:
            return run_job(job, context)
        except OSError as why:
            if (failed := writing_failed(why)) is None:
                raise
            raise failed from why


def _node_monitor(rank: Rank, show: OnLost) -> NodeMonitor:
    """`show` gets the error of another machine, which ends this process."""

    def connect() -> Store:
        from codetune.launch.process_group import connect_store

        return connect_store(keeps_it=False)

    def end(error: CodetuneError) -> None:
        show(error)
        os._exit(error.exit_status)

    monitor = NodeMonitor(rank, connect, end)
    if monitor.count > 1:
        _launcher_store()  # waits for the others
        monitor.start()
    return monitor


@cache
def _rank_monitor() -> NodeMonitor:
    """The monitor of a rank that the user's launcher started, for all its jobs."""
    return _node_monitor(current_rank(), console.show_error)


def _read_key(key: str) -> str:
    """The value of a key of the launcher's store; waits until another process has set it."""
    from codetune.launch.process_group import interruptible

    store = _launcher_store()
    return interruptible(lambda: store.get(key).decode())


@cache
def _launcher_store() -> Store:
    """The store of ranks that a launcher has started, or a command on each of several machines."""
    from codetune.launch.process_group import rendezvous_store

    return rendezvous_store(current_rank())


def _store_of_job(number: int) -> OpenStore:
    from codetune.launch.process_group import prefix_store

    return lambda: prefix_store(_launcher_store(), f"process-group-{number}")


def _file_store(directory: Path, rank: Rank) -> Store:
    from codetune.launch.process_group import file_store

    return file_store(directory / "store", rank.world_size)
