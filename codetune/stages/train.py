"""train: the base model fine-tuned on the selection -> `model/`, with `train/metrics.jsonl` beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from codetune import console
from codetune.console import percent, quantity
from codetune.data.ids import pack_ids
from codetune.errors import ModelError
from codetune.launch.dispatch import Job, WorkerContext, perform, process_count, require_launch
from codetune.launch.environment import current_rank
from codetune.launch.workers import Progress
from codetune.model.chat_format import find_chat_format
from codetune.project.sections import OF_HOLDOUT, Project
from codetune.records import TUNED
from codetune.stages.card_text import VERSIONS
from codetune.stages.dataset import TAKEN_BY_SOURCE, rows_by_source
from codetune.stages.inputs import artefact_input, model_here, model_input
from codetune.stages.model_card import update_card
from codetune.stages.resume import (
    TRAINED,
    claim_training,
    other_settings_of,
    publish_training,
    record_of,
    step_of,
    unfinished_directory,
    whole_checkpoints,
)
from codetune.stages.runner import of_total, stage_settings, write_total
from codetune.stages.select import SELECT
from codetune.stages.stage import (
    Details,
    Input,
    Recipe,
    RunContext,
    Settings,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.stages.tasks_apart import (
    TASKS,
    check_measurable,
    measuring_settings,
    prepare_tasks,
    task_measure,
    tasks_apart_input,
)
from codetune.store.files import replacing, write_text
from codetune.store.manifest import Manifest
from codetune.store.row_artefacts import read_selection
from codetune.store.run_directory import METRICS, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHAT_FORMAT = "model.chat_format"
MEASURED = ("holdout", "tasks_apart")  # facts that only an evaluated training has
TRAINED_BY = ("torch", "transformers", "peft", "accelerate", "tokenizers")  # packages whose versions are kept


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    return artefact_input(SELECT), model_input("base", "model.path"), *tasks_apart_input(project)


def _check(context: RunContext, request: StageRequest) -> None:
    asked = context.project.launch.processes
    # With `auto` any number fits, and to count the GPUs would load torch before a missing selection is told.
    require_launch(context.project, TRAIN.name, 1 if asked == "auto" else asked)


def _check_ahead(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    from codetune.training.train import require_trainable

    rank, here = current_rank(), process_count(context.project)
    processes = rank.world_size if rank.world_size > 1 else here * context.project.launch.nodes
    project = with_chat_format(context.project, paths["base"])
    require_trainable(project, paths["base"], here, processes)
    check_measurable(context, project, paths["base"])


def _settings(context: RunContext, request: StageRequest, settings: Settings) -> Settings:
    """The settings with the chat format that is found where the project names none; without the key where the model is
    not here, and without those that say what becomes of evaluations where there are none."""
    settings = {**settings, **measuring_settings(context.project)}
    if not context.project.train.is_evaluated:
        settings = {key: value for key, value in settings.items() if key.removeprefix("train.") not in OF_HOLDOUT}
    if settings[CHAT_FORMAT] is not None:
        return settings
    found = {}
    with suppress(ModelError):
        if (directory := model_here(context.project, "model.path")) is not None:
            found[CHAT_FORMAT] = find_chat_format(directory)
    return {**{key: value for key, value in settings.items() if key != CHAT_FORMAT}, **found}


def with_chat_format(project: Project, base: Path) -> Project:
    """Raises ModelError where the project names no format and the model does not show it."""
    if project.model.chat_format is not None:
        return project
    model = project.model.model_copy(update={"chat_format": find_chat_format(base)})
    return project.model_copy(update={"model": model})


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    project, run = with_chat_format(context.project, recipe.paths["base"]), context.run
    if context.project.model.chat_format is None:
        console.say(f"train: the chat format found in the model is {project.model.chat_format}")
    directory, tasks = claim_training(run, recipe, request.replace), prepare_tasks(context)
    with replacing(run.model) as saved, console.progress("training", None, "step") as bar:
        paths = {"model": str(recipe.paths["base"]), "directory": str(directory), "saved": str(saved)}
        found, *_ = perform(
            Job(recipe.stage, project, {**paths, "replace": request.replace, TASKS: tasks}),
            process_count(project),
            lambda rank, message: _show(bar, message, directory) if rank == 0 else None,
            _in_process,
        )
        write_text(saved / TRAINED, json.dumps(record_of(recipe), indent=2) + "\n")
    publish_training(run, directory)
    summary = cast("dict[str, Any]", found)
    found_format = {} if context.project.model.chat_format else {"chat_format": project.model.chat_format}
    by_source = rows_by_source(context, lambda: _trained_ids(run, frozenset(summary["dropped"])))
    facts = {**summary["facts"], **found_format, **by_source, VERSIONS: {name: version(name) for name in TRAINED_BY}}
    return StageOutput(summary["rows"], summary["refused"], facts)


def _trained_ids(run: Run, dropped: Collection[str | None]) -> NDArray[np.uint64]:
    return pack_ids(row.id for row in read_selection(run.selection) if row.id not in dropped)


def _show(bar: console.ProgressBar, message: Progress, directory: Path) -> None:
    match message:
        case {"warning": str(text)}:
            console.warn(text)
        case {"note": str(text)}:
            console.say(text)
        case {"activity": str(text)}:
            bar.describe(text)
        case _:
            step, steps, loss = (cast("float", message[name]) for name in ("step", "steps", "loss"))
            write_total(directory, int(steps))
            bar.move_to(int(step), int(steps), f"loss {loss:.4f}")


def _in_process(job: Job, worker: WorkerContext) -> dict[str, Any]:
    from codetune.training.train import train

    details, run = cast("dict[str, Any]", job.details), Run(job.project.run_dir)
    sharded = job.project.launch.strategy not in ("auto", "ddp")
    with worker.process_group(even_single=sharded) as group:
        summary = train(
            read_selection(run.selection),
            job.project,
            Path(details["model"]),
            Path(details["directory"]),
            Path(details["saved"]),
            worker.send_progress,
            group,
            holdout=read_selection(run.holdout) if job.project.train.holdout and run.holdout.exists() else (),
            tasks=task_measure(details[TASKS], job.project, Path(details["model"]), group),
            replace=details["replace"],
            notify=lambda kind, text: worker.send_progress({kind: text}),
        )
    refused = Counter(refusal.kind for refusal in summary.dropped)
    facts = {name: value for name, value in asdict(summary).items() if name not in ("rows", "dropped")}
    facts = {name: value for name, value in facts.items() if name not in MEASURED or value is not None}
    dropped = [refusal.id for refusal in summary.dropped]
    return {"rows": summary.rows, "refused": refused, "dropped": dropped, "facts": facts}


def _progress(context: RunContext, request: StageRequest) -> str | None:
    directory = unfinished_directory(context.run)
    if not directory.exists():
        return None
    steps = [step_of(checkpoint) for checkpoint in whole_checkpoints(directory)]
    differing, _ = _other_settings(context)
    other = f", made with other settings: {differing}" if differing else ""
    saved = f"checkpoint of step {max(steps)}{other}" if steps else "no checkpoint yet"
    done = _last_step(directory / METRICS)
    return f"step {done}{of_total(directory)}, {saved}" if done else saved


def _last_step(metrics: Path) -> int:
    """The step of the last whole line; 0 where there is none."""
    lines = metrics.read_bytes().rpartition(b"\n")[0].splitlines() if metrics.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _remark(context: RunContext) -> str:
    """A training that was begun beside the finished one."""
    return (
        f"another training has begun: {_progress(context, StageRequest())}" if context.run.next_train.exists() else ""
    )


def _other_settings(context: RunContext) -> tuple[str, str]:
    """How the settings of an unfinished training differ from the project's, and the command that continues it."""
    return other_settings_of(context.run, stage_settings(context, TRAIN, StageRequest()))


def _loss(context: RunContext, manifest: Manifest) -> str:
    """The finished model, and the results that later stages have made of it."""
    method, steps = manifest.settings["train.method"], manifest.facts["steps"]
    work = f"{manifest.seconds:,.0f} s of work"
    made = f"a model of {quantity(steps, 'step')} (method {method}), made on {manifest.day} by {work}"
    evaluated = sorted(path.parent.name for path in context.run.evaluations.glob(f"*/{TUNED}.json"))
    return made + (f", and its evaluation on {' and '.join(evaluated)}" if evaluated else "")


def _details(result: StageResult) -> Details:
    facts = result.facts
    loss = f", last loss {facts['last_loss']:.4f}" if facts["last_loss"] is not None else ""
    steps, padding = quantity(facts["steps"], "step"), percent(facts["padding_rate"])
    lines = [f"{steps}, {facts['tokens']:,} tokens, padding {padding}{loss}"]
    if facts.get("strategy", "alone") != "alone":
        lines.append(f"{facts['processes']} processes, {facts['strategy']}: {facts['strategy_because']}")
    speed = [f"{facts['seconds']:,.1f} s in its steps"]
    if facts["peak_memory_bytes"]:
        speed.append(f"peak GPU memory {facts['peak_memory_bytes'] / 1e9:.2f} GB")
    if facts["mfu"]:
        speed.append(f"{percent(facts['mfu'])} MFU")
    lines.append(", ".join(speed))
    if held_out := facts.get("holdout"):
        loss = f"{held_out['loss']:.4f} nats a token on {quantity(held_out['rows'], 'row')}"
        stopped = ", stopped early" if held_out["stopped_early"] else ""
        lines.append(f"held-out loss: {loss}, with the weights of step {held_out['step']:,}{stopped}")
    if apart := facts.get("tasks_apart"):
        stopped = ", stopped early" if apart["stopped_early"] else ""
        rate = f"{percent(apart['pass_rate'])} of the {quantity(apart['tasks'], 'task')} of train.tasks"
        lines.append(f"pass@1: {rate}, with the weights of step {apart['step']:,}{stopped}")
    if taken := facts.get(TAKEN_BY_SOURCE):
        lines.append(f"rows of each data set: {', '.join(f'{name} {rows:,}' for name, rows in taken.items())}")
    if facts["truncated_rows"]:
        lost = f"{facts['lost_tokens']:,} tokens lost ({percent(facts['lost_share'])} of all)"
        lines.append(f"truncated: {quantity(facts['truncated_rows'], 'row')}, {lost}")
    return Details(lines)


TRAIN: Stage = Stage(
    "train",
    _inputs,
    lambda run, request: run.model,
    _write,
    check=_check,
    check_ahead=_check_ahead,
    settings=_settings,
    progress=_progress,
    has_saved=lambda context, request: bool(whole_checkpoints(unfinished_directory(context.run))),
    continue_command=lambda context: _other_settings(context)[1],
    remark=_remark,
    afterwards=update_card,
    loss=_loss,
    details=_details,
    documented=("chat_format", TAKEN_BY_SOURCE),
    in_process=_in_process,
)
