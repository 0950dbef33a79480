"""A command whose processes hold every model together, as if no GPU held one, each model with a job of its own:
`python -m tests.stages.together PROJECT PROCESSES PARTS KEY=VALUE... -- MODEL...`, also under torchrun."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from codetune import console
from codetune.errors import CodetuneError
from codetune.launch.dispatch import Job, perform, release_followers, run_follower
from codetune.launch.environment import current_rank, prepare_process
from codetune.project.file import read_project
from codetune.stages.benchmarks import open_benchmark
from codetune.stages.generate import WorkList, completed_rows
from codetune.stages.model_ref import model_ref
from codetune.stages.pipeline import run_job
from codetune.stages.runner import open_context


def main(project: Path, processes: int, parts: Path, settings: list[str], models: list[str]) -> None:
    context = open_context(read_project(project, settings, {}))
    tasks = open_benchmark(context, "tasks.jsonl")
    for name in models:
        own = parts / Path(name).name
        own.mkdir(parents=True, exist_ok=True)
        numbers = range(context.project.generate.samples_per_task)
        found = completed_rows(own)
        every = [(problem.task_id, number) for problem in tasks.problems for number in numbers]
        missing = [item for item in every if item not in found]
        work = replace(WorkList(model_ref(context, name), tasks.file, missing, own), together=True)
        perform(Job("generate", context.project, work.document()), processes, lambda rank, message: None, run_job)


if __name__ == "__main__":
    prepare_process()
    if current_rank().rank > 0:
        run_follower(run_job)
    status, cut = 0, sys.argv.index("--")
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:cut], sys.argv[cut + 1 :])
    except CodetuneError as error:
        console.show_error(error)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    finally:
        release_followers()
    sys.exit(status)
