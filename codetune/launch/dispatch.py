"""The work that the processes of a command share: what each of them does, and how it comes to do it.

    one process         the command does the work itself
    several             it starts workers and speaks for them (workers.py); they get the resolved project from it
    torchrun, srun, ... the first of the ranks that the user started is the command, the others follow it

Imports torch and the stages inside functions: a command that has nothing to share never loads them."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune import console
from codetune.errors import UsageError, writing_failed
from codetune.launch.environment import Node, WorkerTask, current_rank, node, only_rank
from codetune.launch.workers import Listen, Tell, WorkerSpec, leave, run_workers, speaking
from codetune.project.sections import Project
from codetune.records import ALONE, Rank
from codetune.store.run_directory import project_document, project_of
from codetune.store.scratch import scratch_directory

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Meeting = Callable[[], "Store"]
RE_ENTERED = (sys.executable, "-m", "codetune", "worker")  # the last word is for whoever looks at processes
GONE, PATIENCE_WITH_RANKS = "gone", 2.0  # seconds; those that have failed never say that they go
_LAST = "null"  # in the place of a job: there are no more


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a process knows of the others while it works: its place among them, and where they meet (None: it is
    alone)."""

    place: Rank
    meeting: Meeting | None
    tell: Tell


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done: a key of `WORK`, and what that work needs beside the project. JSON, for it travels."""

    work: str
    project: Project
    details: Mapping[str, Any]

    def text(self) -> str:
        return json.dumps({"work": self.work, "details": self.details, "project": project_document(self.project)})

    @classmethod
    def read(cls, text: str) -> Job:
        document = json.loads(text)
        return cls(document["work"], project_of(document["project"]), document["details"])


def perform(job: Job, processes: int, listen: Listen) -> list[Any]:
    """What each process returned, by rank (of this machine, where there are several). `processes` are those to start
    on this machine; where the user's launcher has started them, its number counts."""
    here = current_rank()
    if here.world_size > 1:
        return _lead(job, here, processes, listen)
    where = node(job.project.launch.nodes)
    if where.rank > 0:
        raise UsageError(
            f"This is machine {where.rank} of {where.count}, which follows the first one. Expected: a stage "
            "by itself, begun on all machines. Run the earlier stages on one machine, then: codetune " + job.work
        )
    if processes * where.count == 1:
        return [_do(job, WorkerContext(ALONE, None, lambda message: listen(0, message)))]
    return _start(job.text(), processes, where, listen)


def process_count(project: Project) -> int:
    """`launch.processes` of one machine: as many as the project says, or one for each GPU, and 1 without."""
    if project.launch.processes != "auto":
        return project.launch.processes
    from codetune.launch.devices import count_gpus

    return current_rank().local_world_size if current_rank().world_size > 1 else max(1, count_gpus())


def work(worker_task: WorkerTask) -> None:
    """A worker's whole life."""
    with speaking(worker_task.descriptor) as tell:
        text, here = worker_task.job.read_text(encoding="utf-8"), current_rank()
        meeting = lambda: _meeting_in(worker_task.job.parent, here)  # noqa: E731
        if here.world_size > here.local_world_size:
            meeting = _store
            if text == _LAST:
                text = _awaited("job-1")
            elif here.rank == 0:
                _store().set("job-1", text)
        tell({"result": _do(Job.read(text), WorkerContext(here, meeting, tell))})


def follow() -> None:
    """In every rank but the first that the user's launcher started: does the jobs of the first one, until it ends."""
    here, number = current_rank(), 1
    with console.own_stdout():
        while (text := _awaited(f"job-{number}")) != _LAST:
            result = _do(Job.read(text), WorkerContext(here, _meeting_for(number), lambda message: None))
            _store().set(f"result-{number}-{here.rank}", json.dumps(result))
            number += 1
        _store().add(GONE, 1)
    leave(0)


def follow_first_machine(project: Project, here: Node) -> None:
    """On every machine but the first, where the user started the command on each: workers for the job of the first."""
    _start(_LAST, process_count(project), here, lambda rank, message: None)


def dismiss() -> None:
    """Lets the ranks that follow this one end. For the end of the command, whatever came of it."""
    if current_rank().world_size > 1:
        _store().set(f"job-{_store().add('jobs', 1)}", _LAST)
        # Of srun's ranks the first one keeps what all of them read: it must not go before the others have read it.
        until = time.monotonic() + PATIENCE_WITH_RANKS
        while _store().add(GONE, 0) < current_rank().world_size - 1 and time.monotonic() < until:
            time.sleep(0.01)


def _start(text: str, processes: int, where: Node, listen: Listen) -> list[Any]:
    with scratch_directory() as scratch:
        file = scratch / "job.json"
        file.write_text(text, encoding="utf-8")
        return run_workers(WorkerSpec(RE_ENTERED, processes, where, file), listen, console.relay)


def _lead(job: Job, here: Rank, processes: int, listen: Listen) -> list[Any]:
    if job.project.launch.processes != "auto" and processes != here.local_world_size:
        raise UsageError(
            f"launch.processes is {processes}, and this command was started {here.local_world_size} times on this "
            "machine. Expected: the same number. Set launch.processes: auto, or start it without a launcher"
        )
    number = _store().add("jobs", 1)
    _store().set(f"job-{number}", job.text())
    result = _do(job, WorkerContext(here, _meeting_for(number), lambda message: listen(0, message)))
    others = [json.loads(_awaited(f"result-{number}-{rank}")) for rank in range(1, here.world_size)]
    return [result, *others]


def _do(job: Job, worker_context: WorkerContext) -> Any:
    from codetune.launch.devices import take_gpu

    if worker_context.place.world_size > 1:
        take_gpu(worker_context.place.local_rank)
    with _disk():
        return WORK[job.work](job.project, job.details, worker_context)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as why:
        if (failed := writing_failed(why)) is None:
            raise
        raise failed from why


def _awaited(name: str) -> str:
    """What another process says under that name, when it does."""
    from codetune.launch.process_group import interruptible

    store = _store()
    return interruptible(lambda: store.get(name).decode())


@cache
def _store() -> Store:
    """Where processes that a launcher, or a command on each machine, has started leave word for each other."""
    from codetune.launch.process_group import rendezvous_store

    return rendezvous_store()


def _meeting_for(number: int) -> Meeting:
    """Of the ranks of a launcher, for the job of that number."""
    from codetune.launch.process_group import prefix_store

    return lambda: prefix_store(_store(), f"meeting-{number}")


def _meeting_in(directory: Path, here: Rank) -> Store:
    from codetune.launch.process_group import file_store

    return file_store(directory / "meeting", here.world_size)


@contextlib.contextmanager
def _shared(project: Project, worker_context: WorkerContext) -> Iterator[tuple[Rank, Meeting | None]]:
    """The worker_context of a training; one that is alone is a group of one where the project names how a model is shared."""
    if worker_context.meeting is not None or project.launch.strategy in ("auto", "ddp"):
        yield worker_context.place, worker_context.meeting
        return
    with scratch_directory() as scratch, only_rank() as here:
        yield here, lambda: _meeting_in(scratch, here)


def _train(project: Project, details: Mapping[str, Any], worker_context: WorkerContext) -> Any:
    from codetune.launch.process_group import join_process_group
    from codetune.store.row_artefacts import read_selection
    from codetune.store.run_directory import Run
    from codetune.training.train import train

    run = Run(project.run_dir)
    with _shared(project, worker_context) as (here, meeting), join_process_group(here, meeting) as ranks:
        summary = train(
            read_selection(run.selection),
            project,
            Path(details["model"]),
            Path(details["directory"]),
            Path(details["saved"]),
            worker_context.tell,
            ranks,
        )
    refused = Counter(refusal.kind for refusal in summary.dropped)
    facts = {name: value for name, value in asdict(summary).items() if name not in ("rows", "dropped")}
    return {"rows": summary.rows, "refused": refused, "facts": facts}


def _rows(project: Project, details: Mapping[str, Any], worker_context: WorkerContext) -> Any:
    from codetune.stages.row_stage import do_part

    return do_part(project, details, worker_context.place, worker_context.tell)


def _generate(project: Project, details: Mapping[str, Any], worker_context: WorkerContext) -> int:
    from codetune.launch.process_group import join_process_group
    from codetune.stages.generate import Order, complete, complete_together

    ordered, advance = Order(**details), lambda tokens: worker_context.tell({"tokens": tokens})
    if not ordered.together:
        return complete(project, ordered, worker_context.place, advance)
    with join_process_group(worker_context.place, worker_context.meeting) as ranks:
        return complete_together(project, ordered, ranks, advance)


WORK: Mapping[str, Callable[[Project, Mapping[str, Any], WorkerContext], Any]] = {
    "score": _rows,
    "embed": _rows,
    "train": _train,
    "generate": _generate,
}
