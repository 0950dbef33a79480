"""What a process does of a job of a stage. Imports engines inside functions: the command that only sends the job to
workers must not load them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codetune.launch.dispatch import Job, WorkerContext
    from codetune.launch.workers import JSON


def run_job(job: Job, worker: WorkerContext) -> JSON:
    return {"score": _rows, "embed": _rows, "train": _train, "generate": _generate}[job.stage](job, worker)


def _rows(job: Job, worker: WorkerContext) -> JSON:
    from codetune.stages.row_stage import do_part

    return do_part(job.project, job.details, worker.rank, worker.send_progress)


def _train(job: Job, worker: WorkerContext) -> JSON:
    from codetune.store.row_artefacts import read_selection
    from codetune.store.run_directory import Run
    from codetune.training.train import train

    details: Mapping[str, Any] = job.details
    sharded = job.project.launch.strategy not in ("auto", "ddp")
    with worker.process_group(even_single=sharded) as group:
        summary = train(
            read_selection(Run(job.project.run_dir).selection),
            job.project,
            Path(details["model"]),
            Path(details["directory"]),
            Path(details["saved"]),
            worker.send_progress,
            group,
        )
    refused = Counter(refusal.kind for refusal in summary.dropped)
    facts = {name: value for name, value in asdict(summary).items() if name not in ("rows", "dropped")}
    return {"rows": summary.rows, "refused": refused, "facts": facts}


def _generate(job: Job, worker: WorkerContext) -> JSON:
    from codetune.stages.generate import Order, complete, complete_together

    details: Mapping[str, Any] = job.details
    ordered, advance = Order(**details), lambda tokens: worker.send_progress({"tokens": tokens})
    if not ordered.together:
        return complete(job.project, ordered, worker.rank, advance)
    with worker.process_group() as group:
        return complete_together(job.project, ordered, group, advance)
