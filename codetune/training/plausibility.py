"""Unusual settings of a training, and rows that it loses, as sentences that name what is usual or what to do. They are
told before the first step; what cannot work is an error elsewhere. The usual ranges are those of common recipes, wide
by a factor of ten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from codetune.data.own_template import LEARN_LAST
from codetune.data.tokens import NO_ANSWER, TOO_LONG
from codetune.project.sections import Training

LEARNING_RATES = (1e-7, 1e-2)
MOST_DROPPED, MOST_CUT = 0.05, 0.2  # shares of the rows


@dataclass(frozen=True, slots=True)
class TrainingSize:
    """What the settings of a training are compared with."""

    rows: int
    step_samples: int  # the global batch size
    steps: int
    epoch_steps: int
    width: int | None  # of the model's hidden states


@dataclass(frozen=True, slots=True)
class LostRows:
    """Of `rows`, those that are dropped, by reason, and the number of those that are cut."""

    rows: int
    dropped: Mapping[str, int]
    truncated: int


def lost_rows(settings: Training, lost: LostRows) -> list[str]:
    """A sentence where many rows are dropped, and one where many are cut."""
    return [doubt for doubt in (_about_dropped(lost), _about_cut(settings, lost)) if doubt]


def implausible_settings(settings: Training, size: TrainingSize) -> list[str]:
    """A sentence for each unusual setting, in the order of the project file."""
    doubts = [
        _about_steps(settings, size),
        _about_batches(settings, size),
        _about_learning_rate(settings),
        _about_warmup(settings, size),
        _about_checkpoints(settings, size),
        _about_rank(settings, size),
    ]
    return [doubt for doubt in doubts if doubt]


def _about_dropped(lost: LostRows) -> str:
    dropped = sum(lost.dropped.values())
    if dropped <= MOST_DROPPED * lost.rows:
        return ""
    advice = "Set a model.chat_format that writes these rows"
    if any(LEARN_LAST in reason for reason in lost.dropped):
        advice = "Set train.learn: last"
    elif any(reason.startswith((TOO_LONG, NO_ANSWER)) for reason in lost.dropped):
        advice = "Raise train.max_length"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.dropped.items())
    return f"train drops {dropped:,} of {lost.rows:,} rows ({100 * dropped / lost.rows:.0f} %): {reasons}. {advice}"


def _about_cut(settings: Training, lost: LostRows) -> str:
    if lost.truncated <= MOST_CUT * lost.rows:
        return ""
    return (
        f"{lost.truncated:,} of {lost.rows:,} rows are longer than {settings.max_length:,} tokens: they lose their "
        "end, and with it the end of the answer. Raise train.max_length, or set train.too_long: drop"
    )


def _about_steps(settings: Training, size: TrainingSize) -> str:
    whole = settings.epochs * size.epoch_steps
    if settings.max_steps is None or settings.max_steps <= whole:
        return ""
    return (
        f"train.max_steps is {settings.max_steps:,}, and train.epochs: {settings.epochs} ends after {_steps(whole)}. "
        "Raise train.epochs to train longer"
    )


def _about_batches(settings: Training, size: TrainingSize) -> str:
    if size.step_samples <= size.rows:
        return ""
    key = "global_batch_size" if settings.global_batch_size else "gradient_accumulation_steps"
    return (
        f"A step takes {size.step_samples:,} samples, and there are {size.rows:,} rows: each epoch is one step. An "
        f"epoch usually has many. Lower train.{key} or train.per_device_batch_size, or select more rows"
    )


def _about_learning_rate(settings: Training) -> str:
    lowest, highest = LEARNING_RATES
    if lowest <= settings.learning_rate <= highest:
        return ""
    usual = "1e-6 to 1e-4, for all weights" if settings.method == "full" else "1e-5 to 1e-3, for adapters"
    return f"train.learning_rate is {settings.learning_rate:g}. The usual range is {usual}. Check it"


def _about_warmup(settings: Training, size: TrainingSize) -> str:
    """Step k of the warm-up, counted from 0, has the learning rate k / warmup_steps of its peak."""
    if settings.scheduler == "constant" or settings.warmup_steps < size.steps:
        return ""
    reached = 100 * (size.steps - 1) / settings.warmup_steps
    effect = f"never gets above {reached:.0f} % of train.learning_rate" if reached else "is 0, so nothing is learned"
    return (
        f"train.warmup_steps is {settings.warmup_steps:,}, and the training has {_steps(size.steps)}: its learning "
        f"rate {effect}. A warm-up is usually 3 to 10 % of the steps. Set train.warmup_steps: {size.steps // 20}, or "
        "train longer"
    )


def _about_checkpoints(settings: Training, size: TrainingSize) -> str:
    if settings.save_steps is None or settings.save_steps <= size.steps:
        return ""
    others = "only train.save_minutes writes checkpoints" if settings.save_minutes else "there are no checkpoints"
    return f"train.save_steps is {settings.save_steps:,}, and the training has {_steps(size.steps)}: {others}"


def _about_rank(settings: Training, size: TrainingSize) -> str:
    if settings.method == "full" or size.width is None or settings.lora.r <= size.width:
        return ""
    return (
        f"train.lora.r is {settings.lora.r:,}, and the model is {size.width:,} wide: such adapters have more weights "
        "than the layers. The usual range is 8 to 64. Lower it, or set train.method: full"
    )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"
