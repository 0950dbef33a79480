"""`project.Training` -> `TrainingArguments`: what the Trainer of transformers is asked to do, and what it is kept from.

Its own logging, saving and progress bars are off (metrics.py and checkpoint.py do these; it hands our lines of metrics
to whom `report_to` names), and one step of its loop is one optimizer step, whatever the accumulation (trainer.py)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import is_tensorboard_available, is_wandb_available

from codetune.errors import ProjectError
from codetune.project.sections import Training

Precision = Literal["float32", "bfloat16", "float16"]


def training_arguments(
    training: Training,
    precision: Precision,
    steps: int,
    seed: int,
    directory: Path,
    device: str,
    sharing: Mapping[str, Any],
) -> TrainingArguments:
    """`precision` is that of the arithmetic; weights that are trained are float32 always. `sharing` are the arguments
    of what shares the model over processes (parallelism.py)."""
    on_cpu = device == "cpu"
    if on_cpu and precision == "float16":
        raise ProjectError(
            "model.dtype is float16, and there is no GPU. Expected: a number format that this machine can train in. "
            "Set model.dtype: bfloat16 or float32."
        )
    _require_reporters(training)
    arguments = TrainingArguments(
        output_dir=str(directory),
        seed=seed,
        max_steps=steps,
        gradient_accumulation_steps=1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optimizer,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        tf32=training.tf32 if _has_tf32(device) else None,
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
        **sharing,
    )
    # Several visible GPUs and one process would become DataParallel, which splits the batch by rows.
    _ = arguments.device  # finds the devices, and would count them later again
    arguments._n_gpu = min(1, arguments._n_gpu)
    return arguments


def _require_reporters(training: Training) -> None:
    is_there: dict[str, Any] = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if absent := [name for name in training.report_to if not is_there[name]()]:
        raise ProjectError(
            f"train.report_to names {' and '.join(absent)}, and this Python has no such package. Expected: one that is "
            f"installed. Install it: pip install {' '.join(absent)}. Or take it out of train.report_to"
        )


def arithmetic_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """What the Trainer puts around the model, for the looks that are taken at it before."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def _has_tf32(device: str) -> bool:
    return device != "cpu" and torch.cuda.get_device_capability(device)[0] >= 8
