"""What works in a plan and is unusual, in sentences: rows that are lost, settings out of the usual range, a model
that does not fit. What cannot work is a failure (`failures.py`)."""

from __future__ import annotations

from codetune.console import counts, percent, quantity
from codetune.project.sections import Project
from codetune.report.plan_parts import MemoryPlan, RowPlan, StepsPlan
from codetune.selection.holdout import holdout_size
from codetune.stages.selection_report import MOST_REFUSED, without_repeats
from codetune.text import gigabytes
from codetune.training.plausibility import LostRows, lost_rows


def doubts(project: Project, rows: RowPlan | None, steps: StepsPlan | None, memory: MemoryPlan | None) -> list[str]:
    """In the order of the stages; each says what is usual or what to do."""
    found = [] if rows is None else [_about_refused(rows), *_about_sources(rows), _about_count(rows, project)]
    if rows is not None:
        found += lost_rows(project.train, LostRows(rows.tokenised, rows.dropped, rows.truncated))
    found += [*steps.doubts] if steps else []
    if memory and memory.gpu_bytes is not None and memory.fits is False:
        needed, room = gigabytes(memory.memory.total), gigabytes(memory.gpu_bytes)
        found.append(f"The training takes {needed} of each GPU by estimate, and it has {room}")
    return [doubt for doubt in found if doubt]


def _about_refused(rows: RowPlan) -> str:
    faults = without_repeats(rows.refused)
    refused, whole = sum(faults.values()), rows.rows + sum(rows.refused.values())
    if refused <= MOST_REFUSED * whole:
        return ""
    share = percent(refused / whole)
    return f"{refused:,} of {quantity(whole, 'row')} are refused ({share}): {counts(faults)}. Fix the data"


def _about_sources(rows: RowPlan) -> list[str]:
    return [f"The data set {name} gives no row" for name, counted in rows.sources.items() if not counted["rows"]]


def _about_count(rows: RowPlan, project: Project) -> str:
    count, held = project.select.count, holdout_size(project.train.holdout, rows.rows)
    if count is None or count <= rows.rows - held:
        return ""
    return (
        f"select.count is {count:,}, and train.holdout leaves {rows.rows - held:,} of {quantity(rows.rows, 'row')} to "
        "select from. Lower one of the two"
    )
