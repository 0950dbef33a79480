"""Whether a data set has as many rows as the settings of select need. Known as soon as it is read: the stages before
select need not work for hours first. More rows may be set aside later, which only select itself can see."""

from __future__ import annotations

from codetune.console import quantity
from codetune.errors import DataError
from codetune.project.sections import Project
from codetune.selection.holdout import holdout_size
from codetune.selection.mismatch import FEWEST_PAIRS
from codetune.selection.quotas import quota_of
from codetune.selection.strategies import STRATEGIES


def check_enough_rows(project: Project, rows: int, *, scores_are_here: bool) -> None:
    """Raises DataError where select is certain to fail with so many usable rows, less those of `train.holdout`."""
    settings, found = project.select, f"the data set has {quantity(rows, 'usable row')}"
    strategy = STRATEGIES[settings.strategy]
    if settings.count is not None and settings.count > rows:
        raise DataError(
            f"select.count is {settings.count:,}, and {found}. Expected: at most {rows:,}. Lower select.count, or add "
            "rows to the data set"
        )
    kept = ""
    if held := holdout_size(project.train.holdout, rows):
        kept = " that train.holdout leaves"
        rows, found = rows - held, f"train.holdout leaves {rows - held:,} of {quantity(rows, 'usable row')}"
    if settings.strategy != "all" and not quota_of(rows, rows, settings):
        raise DataError(
            f"select.ratio is {settings.ratio:g}, which is no row of {rows:,}{kept}. Expected: one at least. Raise "
            "select.ratio"
        )
    if strategy.needs_embeddings and settings.clusters != "auto" and settings.clusters > rows:
        raise DataError(
            f"select.clusters is {settings.clusters}, and {found}. Expected: at most as many clusters as rows. Set "
            f"select.clusters to {max(1, rows // 10)}, or add rows to the data set"
        )
    if strategy.needs_scores and settings.mismatch == "calibrated":
        _require_shuffled_pairs(project, rows, kept, scores_are_here=scores_are_here)


def _require_shuffled_pairs(project: Project, rows: int, kept: str, *, scores_are_here: bool) -> None:
    """Raises DataError where there will be too few shuffled pairs for the calibrated test, of which a row gives one at
    most. Scores that are here may have been made with other settings than the project's."""
    scoring = project.score
    pairs = min(rows, scoring.shuffled_rows) if scoring.empty_prompt else 0
    if pairs >= FEWEST_PAIRS or (scores_are_here and rows >= FEWEST_PAIRS):
        return
    settings = f"empty_prompt {str(scoring.empty_prompt).lower()}, shuffled_rows {scoring.shuffled_rows}"
    remedy = "Set select.mismatch to ifd"
    if rows >= FEWEST_PAIRS:
        remedy = "Set score.empty_prompt to true and score.shuffled_rows to 256, or select.mismatch to ifd"
    raise DataError(
        "select.mismatch is calibrated, which learns from shuffled pairs what mismatched pairs look like, and of "
        f"{quantity(rows, 'usable row')}{kept} score makes {pairs} ({settings}). Expected: at least "
        f"{FEWEST_PAIRS}. {remedy}"
    )
