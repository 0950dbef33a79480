"""Selected rows and a base model -> trained weights, checkpoints and `metrics.jsonl`: the whole of the stage `train`.

`train` may be called again after any end: it continues from the last checkpoint, on CPU bit by bit as if it had never
stopped. Every rank calls it; rank 0 writes and reports. The steps themselves are in `trainer.py`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging as transformers_logging

from codetune.data.chat import render_chat, require_fitting_format
from codetune.data.token_cache import TokenCache, TokenizedRows, read_token_cache, remove_token_cache, write_token_cache
from codetune.data.tokens import DroppedSample, TrainingTokens, training_tokens
from codetune.errors import DataError, ModelError, ProjectError
from codetune.launch.devices import choose_device, count_gpus, gpu_memory_bytes
from codetune.launch.process_group import SINGLE_PROCESS, ProcessGroup
from codetune.model.load import count_parameters, load_configuration, load_tokenizer
from codetune.model.model_files import resized
from codetune.project.keys import free_on_resume
from codetune.project.sections import OF_HOLDOUT, Project, Training
from codetune.records import Example, Message
from codetune.training import build_model, parallelism
from codetune.training.batch_sampler import StepSampler, evaluation_steps, samples_per_step, total_steps
from codetune.training.build_model import BaseModel
from codetune.training.callbacks import NoticeKind, Notify, ProgressReport, TrainingCallbacks
from codetune.training.checkpoint import (
    STEP_SAMPLES,
    STRATEGY,
    Checkpoint,
    Fingerprint,
    checkpoint_of,
    explain_full_disk,
    last_checkpoint,
    remove_incomplete_checkpoints,
    remove_other_checkpoints,
)
from codetune.training.export import export_model
from codetune.training.holdout import BEST
from codetune.training.parallelism import SHARDED, ParallelStrategy, StrategyChoice
from codetune.training.plausibility import LostRows, TrainingSize, implausible_settings, lost_rows
from codetune.training.summary import TrainingSummary, summarize
from codetune.training.tasks_apart import TaskMeasure, task_judge
from codetune.training.trainer import StepTrainer, explain_out_of_memory, require_supported, training_arguments

TOKENS_FILE, HOLDOUT_FILE = "tokens.i32", "holdout.i32"
PROBE = (Message("user", "Add 1 and 2."), Message("assistant", "1 + 2"))  # any conversation
CONVERSATIONS = PROBE, (Message("system", "Be brief."), *PROBE)
SHORTEST = Example("0" * 16, (Message("user", "x"), Message("assistant", "y")), "", "")
STOPS_AFTER_STEP = (
    "Stops after this step, with a checkpoint. After the last step the model is saved instead. A second Ctrl-C stops "
    "at once, without either"
)
SAVES_FIRST = "The model is saved first. A second Ctrl-C stops at once"  # after the last step
ADAPTER_SHARE = 0.01  # of a model's parameters, at most, in adapters of the usual rank


def train(
    examples: Iterable[Example],
    project: Project,
    model_path: Path,
    directory: Path,
    saved: Path,
    report: ProgressReport,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    holdout: Iterable[Example] = (),
    tasks: TaskMeasure | None = None,
    replace: bool = False,
    notify: Notify = lambda kind, text: None,
) -> TrainingSummary:
    """Writes checkpoints and metrics in `directory`, and the finished model in `saved`; measures the loss on `holdout`
    and pass@1 on `tasks`. `report` gets `{"step", "steps", "epoch", "loss", "learning_rate", "grad_norm"}` after every
    step, `notify` gets unusual settings and the step of a checkpoint before the first one. Ctrl-C and SIGTERM, of which
    `notify` tells at once, raise KeyboardInterrupt after the current step and a checkpoint; a second one at once.
    Raises StaleError for another training's checkpoint (`replace` removes it), DataError where no row is left,
    ProjectError and ModelError for impossible settings."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = _fitting_tokenizer(project, model_path)
    choice = _choose_strategy(project, model_path, group.member.local_world_size, group.count)
    rows, held_out = TokenizedRows(examples, project, tokenizer), TokenizedRows(holdout, project, tokenizer)
    token_cache, holdout_cache = _tokenize(rows, held_out, directory, group)
    held_out_digests = _digests(holdout_cache, tasks)
    fingerprint = _fingerprint(project, model_path, token_cache, held_out_digests, group.count, choice.strategy)
    checkpoint = _last_checkpoint(directory, fingerprint, group, replace)
    steps = total_steps(project.train, len(token_cache), group.count)
    for kind, text in _notices(project, model_path, _lost(rows, token_cache), steps, group.count, checkpoint):
        notify(kind, text)
    base = BaseModel(model_path, build_model.arithmetic_precision(project), choice.strategy)
    arguments = _prepare_loading(project, base, steps, directory)
    notify("activity", "loading the model")
    model = _load_model(project, base, arguments, [token_cache, holdout_cache], group)
    sharded = choice.strategy in SHARDED  # then no model could be made of a checkpoint of the last step
    every = evaluation_steps(project.train, len(token_cache), group.count) if held_out_digests else None
    callbacks = TrainingCallbacks(project.train, directory, fingerprint, steps, report, group, not sharded, every)
    callbacks.on_train_begin(checkpoint)
    judge = None if tasks is None else task_judge(tasks, model, project, tokenizer, rows.answer_end_tokens, group)
    inputs = build_model.training_inputs(model, project, base, token_cache, holdout_cache, group, judge)
    trainer = StepTrainer(model, arguments, inputs, callbacks)
    _take_steps(trainer, callbacks, checkpoint, notify)
    with callbacks.interruptible(lambda: notify("note", SAVES_FIRST)):
        _keep_best(trainer, callbacks, directory, project.train, notify)
        whole = _whole_model(trainer, model, project, base, group)
        if group.is_first:
            _save(whole, tokenizer, rows.answer_end_tokens, project, base, directory, saved)
    parallelism.load_whole_models()  # later stages may run in this process
    return summarize(token_cache, rows, callbacks, choice, group.count, (holdout_cache, held_out), tasks)


def require_trainable(project: Project, model_path: Path, processes_here: int, processes: int) -> None:
    """Raises what `train` in so many processes would raise before its first step, as far as it needs neither rows nor
    weights: ProjectError and ModelError for packages, devices, chat format and settings."""
    choice = _choose_strategy(project, model_path, processes_here, processes)
    precision = build_model.arithmetic_precision(project)
    require_supported(project, precision, choice.strategy, choose_device())
    tokenizer = _fitting_tokenizer(project, model_path)
    _require_learnable(project, tokenizer)
    _require_room(project, tokenizer)
    _require_embedded_frame(project, tokenizer, model_path)
    build_model.require_preparable(project, BaseModel(model_path, precision, choice.strategy))


def _require_room(project: Project, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ProjectError where no row can have an answer token within `train.max_length` tokens."""
    settings, chat_format = project.train, project.model.chat_format
    assert chat_format is not None
    tokens = training_tokens(tokenizer, chat_format, SHORTEST, settings.max_length, settings.too_long, settings.learn)
    if isinstance(tokens, DroppedSample) and tokens.tokens:
        raise ProjectError(
            f"train.max_length is {settings.max_length}, and in the chat format {chat_format} the shortest row has "
            f"{tokens.tokens} tokens: every row would be dropped ({tokens.refusal.reason}). Expected: room for a "
            "question and an answer. Raise train.max_length"
        )


def _require_embedded_frame(project: Project, tokenizer: PreTrainedTokenizerBase, model_path: Path) -> None:
    """Raises ModelError where the chat format writes a token that the model has no embedding for. Loading allows
    control tokens without one, because no text gives them."""
    chat_format, learn = project.model.chat_format, project.train.learn
    assert chat_format is not None
    embeddings = load_configuration(model_path).get_text_config().vocab_size
    for messages in CONVERSATIONS:
        example = Example("0" * 16, messages, "", "")
        tokens = training_tokens(tokenizer, chat_format, example, sys.maxsize, "truncate", learn)
        if isinstance(tokens, TrainingTokens) and (last := max(tokens.ids)) >= embeddings:
            written = f"the token {last:,} ({tokenizer.convert_ids_to_tokens(last)!r}) of the chat format {chat_format}"
            raise resized(model_path, f"a tokenizer with {written}", embeddings, len(tokenizer))


def _fitting_tokenizer(project: Project, model_path: Path) -> PreTrainedTokenizerBase:
    """Raises ModelError for a chat format that does not fit the tokenizer."""
    tokenizer, chat_format = load_tokenizer(model_path), project.model.chat_format
    assert chat_format is not None  # found before the work began
    require_fitting_format(chat_format, tokenizer)
    return tokenizer


def _require_learnable(project: Project, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError for a chat format in which neither a question with its answer nor the same after a system
    message can be learned: no row could be."""
    chat_format, learn = project.model.chat_format, project.train.learn
    assert chat_format is not None
    reasons = [render_chat(chat_format, messages, tokenizer, "", learn) for messages in CONVERSATIONS]
    if all(isinstance(reason, str) for reason in reasons):
        raise ModelError(
            f"No conversation can be learned in the format {chat_format}: {reasons[0]}. Expected: a template that "
            "writes each answer as it is, behind its own prompt for one. Set model.chat_format to a family, or fix the "
            "template."
        )


def _lost(rows: TokenizedRows, token_cache: TokenCache) -> LostRows:
    """What tokenizing lost; complete in rank 0, which alone tells it."""
    dropped = Counter(refusal.kind for refusal in rows.dropped)
    return LostRows(len(token_cache) + dropped.total(), dropped, rows.truncated_rows)


def _notices(
    project: Project, model_path: Path, lost: LostRows, steps: int, processes: int, checkpoint: Checkpoint | None
) -> list[tuple[NoticeKind, str]]:
    """Doubts about the rows and settings of a new training, or where it continues."""
    if checkpoint is not None:
        return [("note", f"Continues from the checkpoint of step {checkpoint.step:,} of {steps:,}")]
    settings, config = project.train, load_configuration(model_path).get_text_config()
    samples, rows = samples_per_step(settings, processes), lost.rows - sum(lost.dropped.values())
    epoch_steps = len(StepSampler(rows, samples, project.seed))
    size = TrainingSize(rows, samples, steps, epoch_steps, getattr(config, "hidden_size", None))
    return [("warning", doubt) for doubt in [*lost_rows(settings, lost), *implausible_settings(settings, size)]]


def _choose_strategy(project: Project, model_path: Path, processes_here: int, processes: int) -> StrategyChoice:
    gpus = count_gpus()
    if gpus and processes_here > gpus:
        raise ProjectError(
            f"{processes_here} processes on a machine with {gpus} GPUs. Expected: a GPU for each process "
            "of a training. Set launch.processes: auto"
        )
    parameters, method = count_parameters(model_path), project.train.method
    trained = parameters if method == "full" else int(parameters * ADAPTER_SHARE)
    size = parallelism.ModelSize(trained, parameters - trained, gpu_memory_bytes())
    return parallelism.choose_strategy(project.launch, method, processes, size)


def _tokenize(
    rows: TokenizedRows, held_out: TokenizedRows, directory: Path, group: ProcessGroup
) -> tuple[TokenCache, TokenCache | None]:
    """The token caches of the rows, and of the held-out rows where there are any. Rank 0 writes them and removes
    incomplete checkpoints before another rank looks into `directory`."""
    if group.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        remove_incomplete_checkpoints(directory)
        if not len(write_token_cache(rows, directory / TOKENS_FILE)):
            reasons = _reasons(rows) or "the selection is empty"
            raise DataError(
                f"No row is left to train on: {len(rows.dropped)} dropped ({reasons}). "
                "Expected: at least one. Raise train.max_length, select other rows, or set a model.chat_format that "
                "can write them: codetune plan shows a row as it is trained on."
            )
        if not len(write_token_cache(held_out, directory / HOLDOUT_FILE)) and held_out.dropped:
            raise DataError(
                f"All {len(held_out.dropped)} held-out rows are dropped ({_reasons(held_out)}). Expected: one at least "
                "to measure the loss on. Raise train.max_length or train.holdout"
            )
    group.barrier()
    holdout_cache = read_token_cache(directory / HOLDOUT_FILE)
    return read_token_cache(directory / TOKENS_FILE), holdout_cache if len(holdout_cache) else None


def _reasons(rows: TokenizedRows) -> str:
    return "; ".join(sorted({refusal.reason for refusal in rows.dropped}))


def _last_checkpoint(
    directory: Path, fingerprint: Fingerprint, group: ProcessGroup, replace: bool
) -> Checkpoint | None:
    if replace:
        if group.is_first:
            remove_other_checkpoints(directory, fingerprint)
        group.barrier()
    return last_checkpoint(directory, fingerprint)


def _fingerprint(
    project: Project,
    model_path: Path,
    token_cache: TokenCache,
    held_out: Mapping[str, str],
    processes: int,
    strategy: ParallelStrategy,
) -> dict[str, object]:
    """Everything that a checkpoint must share with the training that continues it."""
    free = {"holdout", "tasks", "task_count", *(key.removeprefix("train.") for key in free_on_resume())}
    free |= set() if held_out else {*OF_HOLDOUT}
    settings = project.train.model_dump(mode="json", exclude=free)
    used = {"full": (), "lora": ("lora",), "qlora": ("lora", "quantization")}[project.train.method]
    for unused in {"lora", "quantization"}.difference(used):
        settings.pop(unused)
    weights = sorted([*model_path.glob("config.json"), *model_path.glob("*.safetensors")])
    return {
        "seed": project.seed,
        "rows": len(token_cache),
        "digest of the rows": token_cache.digest,
        **held_out,
        STEP_SAMPLES: samples_per_step(project.train, processes),
        "files of the base model": {file.name: file.stat().st_size for file in weights},
        "model.dtype": project.model.dtype,
        STRATEGY: parallelism.checkpoint_compatibility(strategy, processes),
        **{f"train.{name}": value for name, value in settings.items()},
    }


def _digests(holdout_cache: TokenCache | None, tasks: TaskMeasure | None) -> dict[str, str]:
    """Of the held-out rows and of the tasks that are kept apart, where there are any."""
    of_rows = {"digest of the held-out rows": holdout_cache.digest} if holdout_cache else {}
    return of_rows | ({"digest of the tasks": tasks.digest} if tasks else {})


def _prepare_loading(project: Project, base: BaseModel, steps: int, directory: Path) -> TrainingArguments:
    """The arguments of the Trainer. They, and the settings of DeepSpeed, tell transformers that a rank loads its shard
    only, so they are made before the model is loaded."""
    parallelism.prepare_deepspeed(base.strategy)
    return training_arguments(project, base, steps, directory, choose_device())


def _load_model(
    project: Project,
    base: BaseModel,
    arguments: TrainingArguments,
    token_caches: Sequence[TokenCache | None],
    group: ProcessGroup,
) -> PreTrainedModel | PeftModel:
    with explain_out_of_memory("the model is loaded"), base.loading(arguments):
        network = build_model.load_base_model(project, base, group.is_first)
        for token_cache in filter(None, token_caches):
            build_model.require_fit(network, project.train, token_cache)
        return build_model.prepare_model(network, project, base)


def _take_steps(
    trainer: StepTrainer, callbacks: TrainingCallbacks, checkpoint: Checkpoint | None, notify: Notify
) -> None:
    """All steps after the checkpoint. Raises KeyboardInterrupt if an interruption ended them."""
    notify("activity", "training")
    with callbacks.interruptible(lambda: notify("note", STOPS_AFTER_STEP)):
        trainer.run(checkpoint)
    if callbacks.interrupted:
        raise KeyboardInterrupt


def _keep_best(
    trainer: StepTrainer, callbacks: TrainingCallbacks, directory: Path, settings: Training, notify: Notify
) -> None:
    """Takes the weights of the best step, where that is not the last one; says so, and where the training stopped
    early. A collective call."""
    best = BEST["loss" if settings.keep_best is None else settings.keep_best]
    if callbacks.stops_early:
        notify(
            "note",
            f"Stops after step {callbacks.step:,} of {callbacks.total_steps:,}: {settings.patience} evaluations in a "
            f"row brought no {best.better} (train.patience)",
        )
    if callbacks.best_step not in (None, callbacks.step):
        trainer.load_weights(checkpoint_of(directory, callbacks.best_step, best.of))
        notify("note", f"Keeps the weights of step {callbacks.best_step:,}, where {best.where}")


def _whole_model(
    trainer: StepTrainer, model: PreTrainedModel | PeftModel, project: Project, base: BaseModel, group: ProcessGroup
) -> PreTrainedModel | PeftModel:
    """In rank 0, the trained model with all its weights. A collective call: every rank makes it."""
    weights = parallelism.gather_weights(base.strategy, trainer)
    if weights is None or not group.is_first:
        return model
    with parallelism.without_sharded_loading(trainer.args):
        return build_model.rebuild_model(project, base, weights)


def _save(
    whole: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    answer_end_tokens: frozenset[int],
    project: Project,
    base: BaseModel,
    directory: Path,
    saved: Path,
) -> None:
    """Writes the finished model. Raises CodetuneError for a full disk, which says where the training continues."""
    with explain_full_disk(saved, directory, "the weights"):
        export_model(whole, tokenizer, project, base.precision, answer_end_tokens, base.path, saved)
    for file in (TOKENS_FILE, HOLDOUT_FILE):
        remove_token_cache(directory / file)
