"""A plan as a user sees it: its `--json` document, and the same in sections. Computes nothing but shares and sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from codetune.cli_options import with_project_option
from codetune.console import (
    CommandResult,
    TextSection,
    counts,
    percent,
    quantity,
)
from codetune.project.sections import Project
from codetune.report.plan_parts import MeasuredFigure, MemoryPlan, RenderedRow, RowPlan, RunPlan, StepsPlan, TimePlan
from codetune.stages.dataset import source_lines
from codetune.text import duration, gigabytes
from codetune.training.memory import DeviceMemory, TrainingSetup

UNKNOWN = "unknown"
SHOWN_CHARACTERS = 400  # of each piece of the rendered row
LEARNED, CONTEXT = "learned", "context"


def plan(found: RunPlan, project: Project) -> CommandResult:
    """Exit status 2 where something would fail later."""
    sections = [
        _rows(found.rows),
        _steps(found.steps, project),
        _memory(found.memory, project),
        _time(found),
        _cost(found),
        _benchmarks(found),
        _example(found.example),
        _command_lines(found.command_lines),
        _measured(found.measured),
    ]
    failures = [f"{number}. {text}" for number, text in enumerate(found.failures, 1)]
    doubts = [f"doubtful: {text}" for text in found.doubts]
    title = "plan: nothing is known to be wrong"
    if doubts:
        title = f"plan: nothing is known to fail, and {quantity(len(doubts), 'thing')} {_are(doubts)} doubtful"
    if failures:
        title = f"plan: {quantity(len(failures), 'thing')} would fail later"
    shown = [section for section in sections if section is not None]
    return CommandResult(
        title,
        notes=[*failures, *doubts],
        more=shown,
        exit_status=2 if failures else 0,
        document=document(found, project),
    )


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"


def document(found: RunPlan, project: Project) -> dict[str, object]:
    """The `--json` document."""
    nearest = found.memory.nearest if found.memory else None
    memory = found.memory and {
        "strategy": found.memory.choice.strategy,
        "because": found.memory.choice.reason,
        "processes": found.memory.processes,
        "bytes": _bytes(found.memory.memory),
        "gpu_bytes": found.memory.gpu_bytes,
        "fits": found.memory.fits,
        "nearest": nearest and {"settings": _changes(nearest[0], project), "bytes": _bytes(nearest[1])},
    }
    cost = found.cost and {
        "score": found.cost.cost.scoring,
        "train_all": found.cost.train_all,
        "train_selected": found.cost.train_selected,
        "epochs": found.cost.epochs,
        "saved_share": found.cost.saved_share,
        "break_even_epochs": found.cost.cost.break_even_epochs,
        "variants": [asdict(variant) for variant in found.cost.variants],
    }
    example = found.example and {
        "id": found.example.id,
        "pieces": [
            {LEARNED: learned, "tokens": tokens, "text": text} for learned, tokens, text in found.example.pieces
        ],
    }
    return {
        "rows": found.rows and asdict(found.rows),
        "training": found.steps and asdict(found.steps),
        "memory": memory,
        "time": found.time and asdict(found.time),
        "cost": cost,
        "benchmarks": {"tasks": dict(found.tasks), "least_difference": dict(found.least_differences)},
        "example": example,
        "command_lines": _shown_lines(found.command_lines),
        "disk": {"needed": found.disk_needed, "free": found.disk_free},
        "measured": [asdict(entry) for entry in found.measured],
        "failures": list(found.failures),
        "doubts": list(found.doubts),
    }


def _rows(rows: RowPlan | None) -> TextSection | None:
    if rows is None:
        return None
    tokens = rows.tokens
    lines = [
        f"{rows.rows:,} usable; refused: {counts(rows.refused) or 'none'}",
        *source_lines(rows.sources).values(),
        f"{tokens.all:,.0f} tokens, {percent(tokens.answer / tokens.all)} of them learned; the longest row has "
        f"{rows.longest:,}",
    ]
    if rows.dropped:
        lines.append(f"train would drop: {counts(rows.dropped)}")
    if rows.truncated:
        lines.append(f"train would cut {quantity(rows.truncated, 'row')}; {rows.lost_tokens:,} tokens are lost in all")
    if rows.tokenised < rows.rows:
        lines.append(f"tokens are those of {rows.tokenised:,} rows at equal distances, scaled to all")
    return TextSection("rows", notes=lines)


def _steps(steps: StepsPlan | None, project: Project) -> TextSection | None:
    if steps is None:
        return None
    source = "the rows selected" if steps.is_selected else f"at most, by select.strategy {project.select.strategy}"
    epochs = quantity(project.train.epochs, "epoch")
    lines = [
        f"{steps.rows:,} rows ({source})",
        f"{steps.samples_per_step:,} in a step: {quantity(steps.steps, 'step')} in {epochs}",
        f"largest micro-batch: {steps.largest.tokens:,} tokens, {steps.largest.learned:,} of them learned",
    ]
    own = project.train.pad_mode
    cells = [
        [mode + (" (train.pad_mode)" if mode == own else ""), percent(rate)]
        for mode, rate in steps.padding_rates.items()
    ]
    return TextSection("training", ("pad mode", "padding"), cells, lines)


def _memory(memory: MemoryPlan | None, project: Project) -> TextSection | None:
    if memory is None:
        return None
    processes = f"{memory.processes:,} process{'' if memory.processes == 1 else 'es'}"
    lines = [f"{memory.choice.strategy} in {processes}: {memory.choice.reason}"]
    match memory.fits:
        case None:
            lines.append("no GPU is here; name one to plan for: --gpu H100")
        case True:
            lines.append(f"fits into a GPU of {gigabytes(memory.gpu_bytes or 0)}")
        case False:
            lines.append(f"DOES NOT FIT into a GPU of {gigabytes(memory.gpu_bytes or 0)}")
    columns, parts = ["part", "planned"], _bytes(memory.memory)
    cells = [[name, gigabytes(size)] for name, size in parts.items()]
    if memory.nearest is not None:
        setup, smaller = memory.nearest
        columns.append("nearest that fits")
        cells = [[*row, gigabytes(size)] for row, size in zip(cells, _bytes(smaller).values(), strict=True)]
        lines.append(f"nearest that fits: {_assignments(_changes(setup, project))}")
    elif memory.fits is False:
        lines.append("nothing fits: a larger GPU, more of them, or a smaller model would")
    lines.append("an estimate; the formulas are in codetune/training/memory.py")
    return TextSection("memory of each GPU" if memory.gpu_bytes else "memory of each process", columns, cells, lines)


def _time(found: RunPlan) -> TextSection:
    time: TimePlan | None = found.time
    if time is None or time.rate is None or time.score_seconds is None or time.train_seconds is None:
        advice = (
            "unknown: no training of this model has been recorded beside this run. Measure some steps with --probe, "
        )
        return TextSection("time", notes=[f"{advice}or name a GPU: --gpu H100"])
    both = time.score_seconds + time.train_seconds
    cells = [
        [name, duration(seconds)]
        for name, seconds in (("score", time.score_seconds), ("train", time.train_seconds), ("both", both))
    ]
    lines = [f"rate: {time.rate.basis}"]
    if time.price is not None:
        lines.append(f"price: {time.price:,.2f} for both")
    return TextSection("time" if time.rate.is_measured else "time (estimated)", ("work", "takes"), cells, lines)


def _cost(found: RunPlan) -> TextSection | None:
    planned = found.cost
    if planned is None:
        return None
    if not planned.cost.scoring:
        saved = f"the selection costs no scoring, and saves {percent(planned.saved_share)} of the training"
        return TextSection("what the selection costs and saves", notes=[saved])
    share, break_even = planned.saved_share, planned.cost.break_even_epochs
    saved = f"saves {percent(share)}" if share >= 0 else f"COSTS {percent(-share)} MORE"
    lines = [
        f"scoring costs {percent(planned.cost.scoring / planned.train_all)} of a training on all rows, and the "
        f"selection trains {percent(planned.train_selected / planned.train_all)} of it: together it {saved}",
        f"it pays from {break_even:.2f} epochs on" if break_even else "it never pays: nothing is left out",
        "by the tokens of model.path, chat format included; select has no tokenizer and estimates them from characters",
    ]
    lengths = list(dict.fromkeys(variant.epochs for variant in planned.variants))
    sizes = list(dict.fromkeys(variant.scorer_share for variant in planned.variants))
    shares = {(variant.scorer_share, variant.epochs): variant.saved_share for variant in planned.variants}
    columns = ["saved, if the scorer has", *(f"{length:g} epoch{'' if length == 1 else 's'}" for length in lengths)]
    cells = [[_scorer(size), *(percent(shares[size, length]) for length in lengths)] for size in sizes]
    return TextSection("what the selection costs and saves", columns, cells, lines)


def _scorer(share: float) -> str:
    return "its weights (score.model)" if share == 1 else f"1/{1 / share:.0f} of its weights"


def _benchmarks(found: RunPlan) -> TextSection | None:
    if not found.least_differences:
        return None
    cells = [
        [
            name,
            f"{found.tasks.get(name, sum(found.tasks.values())):,}",
            f"{100 * least:.1f} points" if least <= 1 else "none: so few tasks tell no models apart",
        ]
        for name, least in found.least_differences.items()
    ]
    notes = [
        "at 80 % power, if two models differ on a fifth of the tasks; a smaller difference is called not told apart",
        "n samples a task, or seeds of a sweep, lower it by a factor of the square root of n at most",
    ]
    return TextSection("what the benchmarks can tell apart", ("benchmark", "tasks", "least difference"), cells, notes)


def _example(row: RenderedRow | None) -> TextSection | None:
    if row is None:
        return None
    cells = [[LEARNED if learned else CONTEXT, f"{tokens:,}", _shortened(text)] for learned, tokens, text in row.pieces]
    return TextSection(
        f"row {row.id} as it is trained on", ("loss", "tokens", "text"), cells, optional=("tokens",), has_prose=True
    )


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]} [...] {text[-half:]}"


def _command_lines(lines: Mapping[str, str]) -> TextSection:
    cells = [[what, line] for what, line in _shown_lines(lines).items()]
    return TextSection("command lines", ("what", "command"), cells, has_prose=True)


def _shown_lines(lines: Mapping[str, str]) -> dict[str, str]:
    return {what: with_project_option(line, all_settings=True) for what, line in lines.items()}


def _measured(entries: Sequence[MeasuredFigure]) -> TextSection | None:
    if not entries:
        return None
    cells = [
        [entry.what.removesuffix(", bytes"), _figure(entry, entry.planned), _figure(entry, entry.measured)]
        for entry in entries
    ]
    return TextSection("planned and measured", ("figure", "planned", "measured"), cells)


def _figure(entry: MeasuredFigure, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if entry.what.endswith("bytes"):
        return gigabytes(value)
    decimals = 1 if entry.what.endswith("seconds") else 0
    return percent(value) if entry.what.endswith("rate") else f"{value:,.{decimals}f}"


def _bytes(memory: DeviceMemory) -> dict[str, int]:
    return {**asdict(memory), "total": memory.total}


def _changes(setup: TrainingSetup, project: Project) -> dict[str, object]:
    """The keys of the project file in which a setup differs from the project."""
    keys = ("method", "per_device_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
    changed = {
        f"train.{key}": getattr(setup.settings, key)
        for key in keys
        if getattr(setup.settings, key) != getattr(project.train, key)
    }
    is_named = setup.strategy in ("alone", "ddp", project.launch.strategy)
    return changed if is_named else {**changed, "launch.strategy": setup.strategy}


def _assignments(changes: Mapping[str, object]) -> str:
    texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in changes.items()}
    return " ".join(f"--set {key}={value}" for key, value in texts.items())
