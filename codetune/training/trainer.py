"""The Trainer of transformers with one data-loader item for each optimizer step, and its arguments.

`training_step` loops over the micro-batches of the step and divides their loss by the learned tokens of the whole step;
so micro-batches may differ in number and size, and a resumed training counts steps only. Accelerate does not prepare
the loader: its sharding repeats rows at the end of an epoch and loses the epoch number when it skips. (Read in
accelerate 1.15 and transformers 5.17-5.23.)

A plain loop over accelerate was tried: it passed the same 78 tests, but took 59 lines more (it chooses the weights that
decay, and saves each strategy's state), draws another LoRA dropout, and cannot continue existing checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import DataLoaderShard
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import is_tensorboard_available, is_wandb_available

from codetune.errors import CodetuneError, ProjectError
from codetune.launch.devices import is_out_of_memory
from codetune.model.adapters import base_network, quiet_peft
from codetune.project.sections import Precision, Project
from codetune.training.build_model import BaseModel, TrainingInputs
from codetune.training.callbacks import StepControl, TrainingCallbacks
from codetune.training.checkpoint import Checkpoint, continuation, explain_full_disk
from codetune.training.collate import MicroBatchTensors
from codetune.training.compilation import compile_layers, explain_uncompilable, require_compilable, uncompiled
from codetune.training.holdout import RankEvaluation, RowLoss, row_losses
from codetune.training.loss import OBJECTIVES, LossFunction
from codetune.training.metrics import StepMetrics
from codetune.training.optimizers import (
    muon_with_adamw,
    optimizer_arguments,
    require_eight_bit_step,
    require_optimizer,
)
from codetune.training.parallelism import (
    SHARDED,
    ParallelStrategy,
    reduce_gradients_in_float32,
    require_strategy,
    strategy_arguments,
)


def training_arguments(
    project: Project, base: BaseModel, steps: int, directory: Path, device: str
) -> TrainingArguments:
    """Turns off the Trainer's own saving, logging, progress bars and accumulation: `TrainingCallbacks` decides when to
    save and log. Raises ProjectError as `require_supported` does."""
    settings, precision = project.train, base.precision
    require_supported(project, precision, base.strategy, device)
    arguments = TrainingArguments(
        output_dir=str(directory),
        seed=project.seed,
        max_steps=steps,
        gradient_accumulation_steps=1,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        tf32=settings.tf32 if device != "cpu" and torch.cuda.get_device_capability(device)[0] >= 8 else None,
        use_cpu=device == "cpu",
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
        **optimizer_arguments(settings, steps),
        **strategy_arguments(base.strategy, project.launch.offload, precision, base.broadcasts_weights),
    )
    # Several visible GPUs and one process would become DataParallel, which splits the batch by rows.
    _ = arguments.device  # counts the devices, which would otherwise overwrite the next line later
    arguments._n_gpu = min(1, arguments._n_gpu)
    return arguments


def require_supported(project: Project, precision: Precision, strategy: ParallelStrategy, device: str) -> None:
    """Raises ProjectError for float16 on a CPU, a tracker that is not installed, a sharded model that is to answer
    tasks, or as `require_optimizer`, `require_eight_bit_step` and `require_compilable` do."""
    settings = project.train
    require_optimizer(settings, strategy)
    if settings.optimizer == "adamw_8bit" and device == "cpu":
        require_eight_bit_step()
    if settings.keep_best == "pass@1" and strategy in SHARDED:
        raise ProjectError(
            f"train.keep_best is pass@1, and launch.strategy {strategy} leaves no process the whole model, which has "
            "to answer the tasks. Expected: a strategy under which each has it. Set launch.strategy: ddp or zero2, or "
            "train.keep_best: loss"
        )
    if device == "cpu" and precision == "float16":
        raise ProjectError(
            "model.dtype is float16, and there is no GPU. Expected: a number format that this machine can train in. "
            "Set model.dtype: bfloat16 or float32."
        )
    is_available: dict[str, Callable[[], bool]] = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if absent := [name for name in settings.report_to if not is_available[name]()]:
        raise ProjectError(
            f"train.report_to names {' and '.join(absent)}, and this Python has no such package. Expected: one that is "
            f"installed. Install it: pip install {' '.join(absent)}. Or take it out of train.report_to"
        )
    require_compilable(project, strategy, device)


class StepTrainer(Trainer):
    """Reports each step to `callbacks`, and saves or stops where they say so."""

    def __init__(
        self, model: torch.nn.Module, arguments: TrainingArguments, inputs: TrainingInputs, callbacks: TrainingCallbacks
    ) -> None:
        dataset: Any = inputs.dataset  # the Trainer asks for its length only
        collator: Any = inputs.collator
        super().__init__(model=model, args=arguments, train_dataset=dataset, data_collator=collator)
        self.remove_callback(PrinterCallback)
        self.add_callback(_TrainerHooks(self._on_train_begin, self._on_step_end))
        reduce_gradients_in_float32(self, inputs.strategy)
        self.model_accepts_loss_kwargs = True  # so it counts the learned tokens of a step, whatever the architecture
        self._inputs, self._callbacks = inputs, callbacks
        self._objective = OBJECTIVES[inputs.settings.objective]
        self._step_began = time.perf_counter()
        self._loss = self._learning_rate = self._grad_norm = self._flops = 0.0
        self._counts = {"tokens": 0, "tokens_seen": 0, "samples": 0}
        self._rows: list[str] = []
        self._loss_function: LossFunction | None = None

    def run(self, checkpoint: Checkpoint | None) -> None:
        """Trains to the last step, from the checkpoint where there is one; `callbacks` have begun with it."""
        if checkpoint is None or not self._callbacks.is_finished:
            with explain_out_of_memory("the weights are updated"):
                self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint is not None else None)
        else:  # the Trainer's loop would do one step before it compares the step with `max_steps`
            self._load_from_checkpoint(str(checkpoint.path))

    def load_weights(self, checkpoint: Path) -> None:
        """Takes the weights of an earlier checkpoint of this training. A collective call: every rank makes it."""
        if self._inputs.strategy in SHARDED:
            self.state.best_model_checkpoint = str(checkpoint)
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        settings, trained = self._inputs.settings, cast("PreTrainedModel | PeftModel", model or self.model)
        if settings.optimizer != "muon" or self.optimizer is not None:
            return super().create_optimizer(model)
        decayed = self.get_decay_parameter_names(trained)
        self.optimizer = muon_with_adamw(trained, base_network(trained), settings, decayed)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoaderShard:
        self._step_began = time.perf_counter()
        return DataLoaderShard(
            self.train_dataset,
            device=self.args.device,
            batch_sampler=self._inputs.sampler,
            collate_fn=self.data_collator,
        )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of the micro-batches in `inputs` (`StepTensors`); `num_items_in_batch` is the number of
        learned tokens of all ranks. Returns this rank's part of the loss, a scalar."""
        model.train()
        assert num_items_in_batch is not None
        micro_batches, directory = inputs["micro_batches"], Path(str(self.args.output_dir))
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(micro_batches, 1):
            is_last = number == len(micro_batches)
            # Ranks reduce their gradients with the last micro-batch only; DeepSpeed also does its optimizer step then.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            synchronized = contextlib.nullcontext() if is_last else self.accelerator.no_sync(model)
            with synchronized, explain_uncompilable(directory, lambda: self._callbacks.interrupted):
                total += self._forward_backward(model, batch, num_items_in_batch)
        self._loss, self._learning_rate = total.item(), float(self._get_learning_rate())
        self._counts = {name: inputs[name] for name in self._counts}
        self._rows = [row for batch in micro_batches for row in batch["rows"]]
        if self._inputs.flop_counter is not None:
            learned = len(inputs["labels"])
            self._flops = self._inputs.flop_counter.flops(inputs["tokens"], inputs["token_pairs"], learned)
        return total

    def _forward_backward(
        self, model: torch.nn.Module, batch: MicroBatchTensors, step_tokens: torch.Tensor | int
    ) -> torch.Tensor:
        """Of one micro-batch; returns its part of the step's loss, a detached scalar."""
        assert self._loss_function is not None
        try:
            with self.compute_loss_context_manager():
                losses = self._loss_function(model, batch)  # [N]
                loss = self._objective(losses).sum() / step_tokens
            if not torch.isfinite(loss):
                raise CodetuneError(self._not_finite("loss", _rows_not_finite(losses, batch)))
            # Gradients are averaged over the ranks, but the loss is a sum over them.
            self.accelerator.backward(loss * self.args.world_size)
        except RuntimeError as why:
            if not is_out_of_memory(why):
                raise
            raise CodetuneError(self._out_of_memory(batch)) from why
        detached: torch.Tensor = loss.detach()
        return detached

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Zero: `FlopCounter` counts instead of the Trainer."""
        return 0

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm: torch.Tensor = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        self._grad_norm = float(norm)
        # With float16 the scaler skips such a step and lowers its scale; otherwise it would make every weight NaN.
        if not self.args.fp16 and not torch.isfinite(torch.as_tensor(self._grad_norm)):
            raise CodetuneError(self._not_finite("gradient", self._rows))
        return norm

    def _on_train_begin(self) -> None:
        require_strategy(self._inputs.strategy, self, self.model_wrapped)
        self._loss_function = self._inputs.build_loss(self.model_wrapped)
        if self._inputs.compiled:
            compile_layers(base_network(cast("PreTrainedModel | PeftModel", self.model)))
        self._step_began = time.perf_counter()

    def _on_step_end(self, step: int, epoch: float) -> StepControl:
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        metrics = StepMetrics(
            loss=self._loss,
            learning_rate=self._learning_rate,
            grad_norm=self._grad_norm,
            seconds=seconds,
            flops=self._flops,
            peak_flops=seconds * (self._inputs.peak_flops_per_second or 0.0) if self._flops else 0.0,
            **self._counts,
        )
        due = self._callbacks.on_step_end(step, epoch, metrics, self._evaluation)
        self._step_began = time.perf_counter()  # an evaluation does not count as training time
        if due.metrics is not None:  # for the trackers of train.report_to
            self.log({name: value for name, value in due.metrics.items() if value is not None})
        return due

    def _evaluation(self) -> RankEvaluation:
        """The losses of this rank's held-out rows, and the tasks that it has judged."""
        losses, passed, tasks = list[RowLoss](), 0, 0
        assert self._loss_function is not None
        with self.compute_loss_context_manager(), uncompiled():
            if self._inputs.holdout is not None:
                losses = row_losses(self.model_wrapped, self._loss_function, self._inputs.holdout, self.args.device)
            if self._inputs.judge_tasks is not None:
                passed, tasks = self._inputs.judge_tasks()
        return RankEvaluation(losses, passed, tasks)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        step = self.state.global_step
        path = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        with explain_full_disk(path, path.parent, "the weights and the optimizer's state"), quiet_peft():
            super()._save_checkpoint(model, trial)
        self._callbacks.on_save(path, step)
        self._step_began = time.perf_counter()  # saving does not count as training time

    def _out_of_memory(self, batch: MicroBatchTensors) -> str:
        ids, settings, samples = batch["inputs"]["input_ids"], self._inputs.settings, len(batch["rows"])
        assert isinstance(ids, torch.Tensor)
        where = "The GPU's memory" if ids.device.type == "cuda" else "The memory"
        smaller = " (a step learns from train.global_batch_size samples as before)"
        if settings.global_batch_size is None:
            smaller = " and raise train.gradient_accumulation_steps as much (a step learns from their product)"
        continues = continuation(Path(str(self.args.output_dir)))
        smaller = f"lower train.per_device_batch_size{smaller}; the training {continues}"
        remedies = ["lower train.max_length"] if samples == 1 else [smaller]
        remedies += [] if settings.gradient_checkpointing else ["set train.gradient_checkpointing: true"]
        remedies += [] if settings.method == "qlora" else ["start a new training with train.method: lora or qlora"]
        return (
            f"{where} is full in step {self.state.global_step + 1}, with {ids.numel():,} tokens of {samples} samples "
            "in a micro-batch. Expected: room for the activations that are kept until the backward pass. Either "
            f"{'; or '.join(remedies)}."
        )

    def _not_finite(self, quantity: str, rows: list[str]) -> str:
        named = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        wider = ", or set model.dtype: float32" if self.args.bf16 or self.args.fp16 else ""
        return (
            f"The {quantity} is not a finite number in step {self.state.global_step + 1} of {self.state.max_steps}, on "
            f"the rows {named}. Expected: a finite number. Check these rows, or lower train.learning_rate (now "
            f"{self.args.learning_rate:g}){wider}."
        )


@contextlib.contextmanager
def explain_out_of_memory(activity: str) -> Iterator[None]:
    """Turns an out-of-memory error into a CodetuneError, for memory that does not depend on the micro-batches."""
    try:
        yield
    except RuntimeError as why:
        if not is_out_of_memory(why):
            raise
        raise CodetuneError(
            f"The memory is full while {activity}. Expected: room for the weights, their gradients and the optimizer's "
            "state (16 bytes for each trained weight). Set train.method: lora or qlora, or train.optimizer: adafactor, "
            "or divide them over more GPUs with launch.strategy: fsdp or zero3 (with launch.offload, in CPU memory)."
        ) from why


class _TrainerHooks(TrainerCallback):
    def __init__(self, on_train_begin: Callable[[], None], on_step_end: Callable[[int, float], StepControl]) -> None:
        self._on_train_begin, self._on_step_end = on_train_begin, on_step_end

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._on_train_begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        due = self._on_step_end(state.global_step, float(state.epoch or 0.0))
        control.should_save = control.should_save or due.should_save
        control.should_training_stop = control.should_training_stop or due.should_stop


def _rows_not_finite(losses: torch.Tensor, batch: MicroBatchTensors) -> list[str]:
    """Ids of the samples with a loss that is not finite (`losses` is [N]); all where only the sum is not."""
    bad, start = [], 0
    for row, end in zip(batch["rows"], batch["row_ends"], strict=True):
        if not torch.isfinite(losses[start:end]).all():
            bad.append(row)
        start = end
    return bad or list(batch["rows"])
