"""The Trainer of transformers, with one loader item for each optimizer step (measured in accelerate 1.15, transformers
5.17-5.23; both are adapted here and nowhere else).

Its loop wants a fixed number of micro-batches a step; here the item holds all of them, `training_step` loops, and the
loss is divided by the answer tokens of the whole step. So micro-batches may differ in number and size, and a resumed
run finds its place by counting steps. The loader goes to the loop unprepared: accelerate's own sharding repeats rows at
the end of an epoch and loses the epoch number when it skips."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from codetune.errors import CodetuneError
from codetune.launch.devices import is_out_of_memory
from codetune.project.sections import Training
from codetune.training.batch_sampler import Share, StepPlan
from codetune.training.callbacks import Course, Due
from codetune.training.checkpoint import Checkpoint
from codetune.training.collate import Collator
from codetune.training.flops import Arithmetic
from codetune.training.loss import Losses
from codetune.training.metrics import StepFacts

# torch reports a full disk as a RuntimeError of its archive writer (caffe2/serialize/inline_container.cc).
TORCH_WRITER = ("PytorchStreamWriter", "inline_container")


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from, and how: the rows of each step, those of this process, as tensors, and how their losses
    come about."""

    plan: StepPlan
    share: Share
    collator: Collator
    begin: Callable[[torch.nn.Module], Losses]  # asked when what is trained has been wrapped around the model
    settings: Training
    arithmetic: Arithmetic | None
    peak_operations: float | None  # of this process's device, a second


class ExactTrainer(Trainer):
    """Asks `course` at the end of each step what is due, and tells it of every checkpoint written."""

    def __init__(
        self, model: torch.nn.Module, arguments: TrainingArguments, material: Material, course: Course
    ) -> None:
        share: Any = material.share  # the Trainer asks for its length alone
        super().__init__(model=model, args=arguments, train_dataset=share, data_collator=material.collator)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Hooks(self._begin, self._end_step))
        self.model_accepts_loss_kwargs = True  # so that the step's tokens are counted for every architecture
        self._material, self._course = material, course
        self._clock = time.perf_counter()
        self._loss = self._learning_rate = self._grad_norm = self._operations = 0.0
        self._counts = {"tokens": 0, "tokens_seen": 0, "samples": 0}
        self._rows: list[str] = []
        self._losses: Losses | None = None

    def run(self, checkpoint: Checkpoint | None) -> None:
        """Trains to the last step, from the checkpoint where there is one."""
        if checkpoint is None or checkpoint.step < self.args.max_steps:
            with telling_of_full_memory("the weights are updated"):
                self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint is not None else None)
        else:  # the loop looks whether it is done only after a step
            self._load_from_checkpoint(str(checkpoint.path))

    def get_train_dataloader(self) -> Any:
        self._clock = time.perf_counter()
        return DataLoaderShard(
            self.train_dataset,
            device=self.args.device,
            batch_sampler=self._material.plan,
            collate_fn=self.data_collator,
        )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        model.train()
        assert num_items_in_batch is not None
        batches = inputs["micro_batches"]
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches):
            with self._gradients_together(model, number + 1 == len(batches)):
                total += self._learn(model, batch, num_items_in_batch)
        self._loss, self._learning_rate = total.item(), float(self._get_learning_rate())
        self._counts = {name: inputs[name] for name in self._counts}
        self._rows = [row for batch in batches for row in batch["rows"]]
        if self._material.arithmetic is not None:
            amounts = inputs["tokens"], inputs["token_pairs"], len(inputs["labels"])
            self._operations = self._material.arithmetic.operations(*amounts)
        return total

    @contextlib.contextmanager
    def _gradients_together(self, model: torch.nn.Module, last: bool) -> Iterator[None]:
        """The processes share their gradients with the last micro-batch; DeepSpeed makes its step with it."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
            yield

    def _learn(self, model: torch.nn.Module, batch: dict[str, Any], step_tokens: torch.Tensor | int) -> torch.Tensor:
        """Forward and backward of one micro-batch; its share of the step's loss."""
        try:
            with self.compute_loss_context_manager():
                assert self._losses is not None
                losses = self._losses(model, batch)
                loss = losses.sum() / step_tokens
            if not torch.isfinite(loss):
                raise CodetuneError(self._not_finite("loss", _rows_not_finite(losses, batch)))
            # Gradients are averaged over the processes, the loss is a sum over them.
            self.accelerator.backward(loss * self.args.world_size)
        except RuntimeError as why:
            if not is_out_of_memory(why):
                raise
            raise CodetuneError(self._out_of_memory(batch)) from why
        detached: torch.Tensor = loss.detach()
        return detached

    def _begin(self) -> None:
        self._losses = self._material.begin(self.model_wrapped)
        self._clock = time.perf_counter()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        self._grad_norm = float(norm)
        # With float16 the scaler skips such a step and lowers its scale; elsewhere it would spoil every weight.
        if not self.args.fp16 and not torch.isfinite(torch.as_tensor(self._grad_norm)):
            raise CodetuneError(self._not_finite("gradient", self._rows))
        return norm

    def _end_step(self, step: int, epoch: float) -> Due:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        possible = seconds * (self._material.peak_operations or 0.0) if self._operations else 0.0
        facts = StepFacts(
            loss=self._loss,
            learning_rate=self._learning_rate,
            grad_norm=self._grad_norm,
            seconds=seconds,
            operations=self._operations,
            possible_operations=possible,
            **self._counts,
        )
        due = self._course.on_step(step, epoch, facts)
        if due.line is not None:  # to whom train.report_to names
            self.log({name: value for name, value in due.line.items() if value is not None})
        return due

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step = self.state.global_step
        path = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        try:
            with warnings.catch_warnings():
                # Of adapters upon adapters, which have no configuration: peft asks whether the vocabulary grew.
                warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
                super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as why:
            if isinstance(why, RuntimeError) and not any(name in str(why) for name in TORCH_WRITER):
                raise  # such as a lost connection to a process that has died
            raise CodetuneError(
                f"{path} cannot be written ({str(why).partition(chr(10))[0]}). Expected: room for the weights and the "
                "optimizer's state. Make room, then run again: codetune train (it continues from the last checkpoint)"
            ) from why
        self._course.on_saved(path, step)
        self._clock = time.perf_counter()  # the time that saving took is no training time

    def _out_of_memory(self, batch: dict[str, Any]) -> str:
        ids, settings, samples = batch["inputs"]["input_ids"], self._material.settings, len(batch["rows"])
        where = "The GPU's memory" if ids.device.type == "cuda" else "The memory"
        fewer = "lower train.per_device_batch_size (a step learns from train.global_batch_size samples all the same)"
        if settings.global_batch_size is None:
            fewer = (
                "lower train.per_device_batch_size and raise train.gradient_accumulation_steps as much (their product "
                "is what a step learns from)"
            )
        remedies = ["lower train.max_length"] if samples == 1 else [f"{fewer}: it goes on from its last checkpoint"]
        remedies += [] if settings.gradient_checkpointing else ["set train.gradient_checkpointing: true"]
        remedies += [] if settings.method == "qlora" else ["train anew with train.method: lora or qlora"]
        return (
            f"{where} is full in step {self.state.global_step + 1}, with {ids.numel():,} tokens of {samples} samples "
            "in a micro-batch. Expected: room for what is kept of them until the gradients are made. Either "
            f"{'; or '.join(remedies)}."
        )

    def _not_finite(self, what: str, rows: list[str]) -> str:
        named = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        wider = ", or set model.dtype: float32" if self.args.bf16 or self.args.fp16 else ""
        return (
            f"The {what} is not a finite number in step {self.state.global_step + 1} of {self.state.max_steps}, on the "
            f"rows {named}. Expected: a number. Look at these rows, or lower train.learning_rate (now "
            f"{self.args.learning_rate:g}){wider}."
        )


@contextlib.contextmanager
def telling_of_full_memory(what: str) -> Iterator[None]:
    """For what is as large whatever the micro-batches: weights, their gradients and the optimizer's state."""
    try:
        yield
    except RuntimeError as why:
        if not is_out_of_memory(why):
            raise
        raise CodetuneError(
            f"The memory is full while {what}. Expected: room for the weights, their gradients and the optimizer's "
            "state (16 bytes a weight that is trained). Set train.method: lora or qlora, or train.optimizer: "
            "adafactor, or share them over more GPUs with launch.strategy: fsdp or zero3 (launch.offload puts them in "
            "the CPU's)."
        ) from why


class _Hooks(TrainerCallback):
    def __init__(self, begin: Callable[[], None], end_step: Callable[[int, float], Due]) -> None:
        self._begin, self._end_step = begin, end_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = self._end_step(state.global_step, state.epoch)
        control.should_save = control.should_save or due.save
        control.should_training_stop = control.should_training_stop or due.stop


def _rows_not_finite(losses: torch.Tensor, batch: dict[str, Any]) -> list[str]:
    """The rows with a loss that is not finite; all of the micro-batch where only the sum is not."""
    bad, start = [], 0
    for row, end in zip(batch["rows"], batch["row_ends"], strict=True):
        if not torch.isfinite(losses[start:end]).all():
            bad.append(row)
        start = end
    return bad or list(batch["rows"])
