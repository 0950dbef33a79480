"""What works in a plan and is hardly meant, in sentences: rows that are lost, settings out of the usual range, a model
that does not fit. What cannot work is a failure (`ahead.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from codetune.console import counts, percent, quantity
from codetune.data.own_template import LEARN_LAST
from codetune.data.tokens import NO_ANSWER, TOO_LONG
from codetune.project.sections import Project
from codetune.report.plan_parts import MemoryPlan, RowPlan, StepsPlan
from codetune.selection.holdout import holdout_size
from codetune.stages.selection_report import MOST_REFUSED, without_repeats
from codetune.text import gigabytes

MOST_CUT = 0.2  # share of the rows


def doubts(project: Project, rows: RowPlan | None, steps: StepsPlan | None, memory: MemoryPlan | None) -> list[str]:
    """In the order of the stages; each says what is usual or what to do."""
    found = [] if rows is None else [_about_refused(rows), _about_dropped(rows), _about_cut(rows, project)]
    found += [] if rows is None else [*_about_sources(rows), _about_count(rows, project)]
    found += [*steps.doubts] if steps else []
    if memory and memory.gpu_bytes is not None and memory.fits is False:
        needed, room = gigabytes(memory.memory.total), gigabytes(memory.gpu_bytes)
        found.append(f"The training takes {needed} of each GPU by estimate, and it has {room}")
    return [doubt for doubt in found if doubt]


def _about_refused(rows: RowPlan) -> str:
    faults = without_repeats(rows.refused)
    return _lost(sum(faults.values()), rows.rows + sum(rows.refused.values()), "refused", faults, "Fix the data")


def _about_sources(rows: RowPlan) -> list[str]:
    return [f"The data set {name} gives no row" for name, counted in rows.sources.items() if not counted["rows"]]


def _about_dropped(rows: RowPlan) -> str:
    advice = "Set a model.chat_format that writes these rows"
    if any(LEARN_LAST in reason for reason in rows.dropped):
        advice = "Set train.learn: last"
    elif any(reason.startswith((TOO_LONG, NO_ANSWER)) for reason in rows.dropped):
        advice = "Raise train.max_length"
    return _lost(sum(rows.dropped.values()), rows.tokenised, "dropped by train", rows.dropped, advice)


def _lost(lost: int, whole: int, how: str, reasons: Mapping[str, int], advice: str) -> str:
    if lost <= MOST_REFUSED * whole:
        return ""
    return f"{lost:,} of {quantity(whole, 'row')} would be {how} ({percent(lost / whole)}): {counts(reasons)}. {advice}"


def _about_cut(rows: RowPlan, project: Project) -> str:
    if rows.truncated <= MOST_CUT * rows.tokenised:
        return ""
    return (
        f"{rows.truncated:,} of {quantity(rows.tokenised, 'row')} would lose their end, and with it the end of the "
        f"answer: they are longer than {project.train.max_length:,} tokens. Raise train.max_length, or set "
        "train.too_long: drop"
    )


def _about_count(rows: RowPlan, project: Project) -> str:
    count, held = project.select.count, holdout_size(project.train.holdout, rows.rows)
    if count is None or count <= rows.rows - held:
        return ""
    return (
        f"select.count is {count:,}, and train.holdout leaves {rows.rows - held:,} of {quantity(rows.rows, 'row')} to "
        "select from. Lower one of the two"
    )
