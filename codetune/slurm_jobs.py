"""`codetune slurm`: the jobs that are left of a project, as scripts for a Slurm cluster, and their submission.

score and embed are job arrays of their missing shards; `select` begins when these have ended, in whatever way, and
makes first what dead shards have left; `train` and `evaluate` begin when the job before them has ended well."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetune.console import CommandResult, quantity
from codetune.errors import BusyError, CodetuneError, InputError, StaleError
from codetune.launch.slurm import SlurmJob, job_script, queued_jobs, submit_script
from codetune.run_status import run_status
from codetune.stages.checks import require_samples
from codetune.stages.inputs import require_named_inputs
from codetune.stages.pipeline import STAGES
from codetune.stages.runner import lock_name
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext, Stage, StageRequest
from codetune.stages.status import stage_status
from codetune.stages.train import TRAIN
from codetune.store.files import remove, write_text
from codetune.store.locks import holders, locked
from codetune.store.run_directory import require_unicode_path

RECORD = "jobs.json"  # beside the scripts: the numbers of the jobs that were submitted last
DONE = ("done", "not needed")


@dataclass(frozen=True, slots=True)
class WrittenJob:
    """A job with its script, and the number that Slurm gave it; None: it was not submitted."""

    job: SlurmJob
    script: Path
    number: int | None = None


def write_jobs(context: RunContext, arguments: Sequence[str], directory: Path, submit: bool) -> list[WrittenJob]:
    """Writes a script for each job that is left, and submits them. `arguments`: those that say which project it is;
    the commands run in `directory`.

    Raises InputError where Slurm cannot write logs there, and StaleError where a job would fail because of what was
    made with other settings. If the jobs are to be submitted, raises BusyError where jobs of this run are in the queue,
    or a stage is running."""
    require_unicode_path(directory)
    _require_possible(context.run.slurm)
    with locked(context.run, "slurm", None):
        jobs = list(remaining_jobs(context, arguments))
        if submit:
            _require_idle(context)
        project = context.project
        for old in context.run.slurm.glob("*.sh"):
            remove(old)
        written = [WrittenJob(job, context.run.slurm / f"{job.name}.sh") for job in jobs]
        for one in written:
            write_text(one.script, job_script(one.job, project.name, project.slurm, directory))
        return _submit(written, context.run.slurm / RECORD) if submit else written


def remaining_jobs(context: RunContext, arguments: Sequence[str]) -> Iterator[SlurmJob]:
    """The jobs that make what is missing or stale, in their order. Raises as `write_jobs` does."""
    project, cluster = context.project, context.project.slurm
    states = {line.stage: line.state for line in run_status(context)}
    pending = [stage for stage in STAGES if states.get(stage.name, "done") not in DONE]
    is_evaluated = all(state in DONE for name, state in states.items() if name not in {stage.name for stage in STAGES})
    for stage in pending:
        require_named_inputs(project, stage.inputs(project, StageRequest()))
    require_samples(context)
    _require_replaceable(context, pending)
    # Only training works on several machines at once.
    alone = [*arguments, *(["--set", "launch.nodes=1"] if project.launch.nodes > 1 else [])]
    gpus_of_shard = cluster.gpus and (1 if project.launch.processes == "auto" else cluster.gpus)
    arrays = []
    for stage in pending:
        if stage.missing_shards and (shards := stage.missing_shards(context, cluster.shards)):
            arrays.append(stage.name)
            yield SlurmJob(stage.name, [stage.name, *alone], gpus_of_shard, shards=shards, shard_count=cluster.shards)
    before: list[str] = []
    if any(stage is not TRAIN for stage in pending):
        before = [SELECT.name]
        yield SlurmJob(
            SELECT.name, ["run", "--to", SELECT.name, *alone], cluster.gpus, after=arrays, condition="afterany"
        )
    if TRAIN in pending:
        yield SlurmJob(TRAIN.name, [TRAIN.name, *arguments], cluster.gpus, project.launch.nodes, after=before)
        before = [TRAIN.name]
    if pending or not is_evaluated:
        first = next(stage for stage in STAGES if stage.of_benchmark)
        yield SlurmJob(STAGES[-1].name, ["run", "--from", first.name, *alone], cluster.gpus, after=before)


def slurm_result(written: Sequence[WrittenJob], directory: Path) -> CommandResult:
    """The jobs for people, and as the document of `--json`."""
    rows = [
        (one.job.name, one.job.array or "-", _dependency(one.job), str(one.number or "-"), one.script.name)
        for one in written
    ]
    document = {
        "directory": str(directory),
        "jobs": [
            {
                "name": one.job.name,
                "script": str(one.script),
                "shards": list(one.job.shards),
                "after": list(one.job.after),
                "job": one.number,
            }
            for one in written
        ],
    }
    if not written:
        return CommandResult("nothing is left to do", document=document)
    submitted = written[0].number is not None
    title = f"{'submitted' if submitted else 'wrote'} {quantity(len(written), 'job')} in {directory}"
    advice = "how far they are: codetune status" if submitted else "to submit them: codetune slurm --submit"
    return CommandResult(
        title, ("job", "shards", "begins", "number", "script"), rows, asides=[advice], document=document
    )


def _dependency(job: SlurmJob) -> str:
    if not job.after:
        return "at once"
    return f"when {' and '.join(job.after)} {'has' if len(job.after) == 1 else 'have'} ended" + (
        "" if job.condition == "afterany" else " well"
    )


def _require_possible(directory: Path) -> None:
    """Slurm replaces `%j` and the like in the path of the logs, and a backslash changes how, also where the path is the
    directory that a script was submitted from (22.05; not as documented)."""
    if found := sorted({"%", "\\"} & set(str(directory))):
        raise InputError(
            f"{directory} holds {' and '.join(found)}, which Slurm replaces in the paths of logs. Expected: a path "
            "without. Set output_dir to another directory"
        )


def _require_replaceable(context: RunContext, pending: Sequence[Stage]) -> None:
    """A job cannot be asked whether a finished model may be lost."""
    for stage in pending:
        found = stage_status(context, stage)
        if stage.loss is not None and found.manifest is not None:
            raise StaleError(
                f"{stage.artefact(context.run, StageRequest())} is finished and would be replaced: {found.why}. Give "
                "this run another name (--set name=NEW), or move the model away; then run the same command again"
            )


def _require_idle(context: RunContext) -> None:
    recorded = _recorded_jobs(context.run.slurm / RECORD)
    if queued := sorted(set(recorded.values()) & queued_jobs() if recorded else set()):
        numbers = " ".join(map(str, queued))
        raise BusyError(
            f"Jobs of this run are in the queue still: {numbers}. Nothing was submitted. What a dead shard leaves is "
            f"made by the job that selects. Wait until they have ended, or end them: scancel {numbers}"
        )
    running = [stage.name for stage in STAGES if holders(context.run, lock_name(stage, StageRequest()))]
    if running:
        raise BusyError(f"{', '.join(running)} is running in {context.run.directory}. Wait until it ends, or end it")


def _submit(written: Sequence[WrittenJob], record: Path) -> list[WrittenJob]:
    numbers: dict[str, int] = {}
    for one in written:
        needs = ":".join(str(numbers[name]) for name in one.job.after)
        try:
            numbers[one.job.name] = submit_script(one.script, f"{one.job.condition}:{needs}" if needs else "")
        except (CodetuneError, KeyboardInterrupt) as why:
            if not numbers:
                raise
            said, ended = str(why) or "Interrupted", " ".join(map(str, numbers.values()))
            raise type(why)(f"{said}. The jobs before it are in the queue; to end them: scancel {ended}") from None
        write_text(record, json.dumps(numbers) + "\n")
    return [WrittenJob(one.job, one.script, numbers[one.job.name]) for one in written]


def _recorded_jobs(record: Path) -> Mapping[str, int]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return {str(name): int(number) for name, number in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise StaleError(
            f"{record} is damaged. Expected: the numbers of the jobs that were submitted last. See that none is left "
            f"in the queue (squeue --me), then remove the file"
        ) from None
