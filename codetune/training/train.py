"""Selected rows and a base model -> trained weights, checkpoints and `metrics.jsonl`. Slow; writes in `directory`, and
the finished model in `saved`.

Called again after any end it continues from its last whole checkpoint, on CPU bit by bit as if never interrupted.
Every process of the training calls it; what is written and told, the first of them writes and tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from codetune.data.token_cache import TokenCache, read_token_cache, remove_token_cache, write_token_cache
from codetune.data.tokens import DroppedSample, TrainingTokens, training_tokens
from codetune.errors import DataError, ProjectError
from codetune.launch.devices import choose_device, count_gpus, gpu_memory_bytes
from codetune.launch.process_group import SINGLE_PROCESS, ProcessGroup
from codetune.model.load import count_parameters, load_tokenizer
from codetune.project.sections import Project, free_on_resume
from codetune.records import Example, Refusal
from codetune.training.arguments import training_arguments
from codetune.training.base_model import (
    Start,
    load_start,
    precision_of,
    require_fit,
    require_own_positions,
    whole_model,
)
from codetune.training.batch_sampler import samples_per_step, total_steps
from codetune.training.build_model import make_ready, material_for
from codetune.training.callbacks import Course, Report
from codetune.training.checkpoint import SHARING, STEP_SAMPLES, Facts, last_checkpoint, remove_torn
from codetune.training.export import Finish, save_trained
from codetune.training.parallelism import (
    SHARDED,
    Choice,
    InForce,
    Size,
    Strategy,
    choose_strategy,
    fact_of,
    keep_float32,
    loading_whole,
    prepare_sharing,
    sharing_arguments,
    whole_weights,
)
from codetune.training.trainer import ExactTrainer, telling_of_full_memory

TOKENS = "tokens.i32"
SHARE_OF_ADAPTERS = 0.01  # of a model's parameters, at most, for adapters of the usual rank


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What the training came to, over all its calls. `last_loss` is the last step's."""

    rows: int
    dropped: tuple[Refusal, ...]
    truncated_rows: int
    lost_tokens: int
    lost_share: float  # of all tokens of the rows that were kept
    steps: int
    tokens: int
    padding_rate: float
    seconds: float
    peak_memory_bytes: int | None
    mfu: float | None
    last_loss: float | None
    processes: int
    strategy: Strategy
    strategy_because: str


def train(
    examples: Iterable[Example],
    project: Project,
    model_path: Path,
    directory: Path,
    saved: Path,
    report: Report,
    ranks: ProcessGroup = SINGLE_PROCESS,
) -> TrainingSummary:
    """`report` gets every step as `{"step", "steps", "epoch", "loss", "learning_rate", "grad_norm"}`. Ctrl-C and
    SIGTERM end it as KeyboardInterrupt, after the step at hand and a checkpoint; a second one at once."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = load_tokenizer(model_path)
    choice = _choose(project, model_path, ranks)
    rows = _Rows(examples, project, tokenizer)
    token_cache = _corpus(rows, directory, ranks)
    facts = _facts(project, model_path, token_cache, ranks, choice.strategy)
    checkpoint = last_checkpoint(directory, facts)
    steps = total_steps(project.train, len(token_cache), ranks.count)
    precision = precision_of(project, model_path)
    start = Start(model_path, precision, choice.strategy)
    # Before the model is loaded: that is how transformers knows that a process needs a part of it only.
    prepare_sharing(choice.strategy)
    sharing = sharing_arguments(choice.strategy, project.launch.offload, precision, handed_out=start.handed_out)
    arguments = training_arguments(project.train, precision, steps, project.seed, directory, choose_device(), sharing)
    with telling_of_full_memory("the model is loaded"), start.loading(arguments):
        network = load_start(project, start, ranks.is_first)
        require_fit(network, token_cache)
        require_own_positions(network, project.train, token_cache)
        model = make_ready(network, project, precision)
    course = Course(project.train, directory, facts, steps, report, ranks)
    course.saves_last = choice.strategy not in SHARDED
    course.begin(checkpoint)
    trainer = ExactTrainer(model, arguments, material_for(model, project, precision, token_cache, ranks), course)
    keep_float32(trainer, choice.strategy)
    trainer.add_callback(InForce(choice.strategy, trainer))
    with course.interruptible():
        trainer.run(checkpoint)
    if course.interrupted:
        raise KeyboardInterrupt
    with course.interruptible():  # everything is learned: who asks to stop now gets the model that is being saved
        weights = whole_weights(choice.strategy, trainer)
        if ranks.is_first:
            if weights is not None:
                with loading_whole(arguments):
                    model = whole_model(project, start, weights)
            finish = Finish(project.model.chat_format, precision, project.train.merge, rows.last_tokens)
            save_trained(model, tokenizer, finish, saved)
            remove_token_cache(directory / TOKENS)
    return _summary(token_cache, rows, course, choice, ranks)


def _choose(project: Project, model_path: Path, ranks: ProcessGroup) -> Choice:
    if (gpus := count_gpus()) and ranks.member.local_world_size > gpus:
        raise ProjectError(
            f"{ranks.member.local_world_size} processes on a machine with {gpus} GPUs. Expected: a GPU for each process "
            "of a training. Set launch.processes: auto"
        )
    parameters, method = count_parameters(model_path), project.train.method
    trained = parameters if method == "full" else int(parameters * SHARE_OF_ADAPTERS)
    size = Size(trained, parameters - trained, gpu_memory_bytes())
    return choose_strategy(project.launch, method, ranks.count, size)


def _corpus(rows: _Rows, directory: Path, ranks: ProcessGroup) -> TokenCache:
    """The rows as tokens; and the directory as the training needs it, before any process looks into it."""
    if ranks.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        remove_torn(directory)
        _require_rows(write_token_cache(rows, directory / TOKENS), rows)
    ranks.barrier()
    return read_token_cache(directory / TOKENS)


class _Rows:
    """Tokenises while it is iterated over, and keeps count of what is lost on the way."""

    def __init__(self, examples: Iterable[Example], project: Project, tokenizer: PreTrainedTokenizerBase) -> None:
        self._examples, self._project, self._tokenizer = examples, project, tokenizer
        self.dropped: list[Refusal] = []
        self.truncated_rows = self.lost_tokens = 0
        self.last_tokens: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[tuple[str, TrainingTokens]]:
        settings, chat_format = self._project.train, self._project.model.chat_format
        for example in self._examples:
            tokens = training_tokens(self._tokenizer, chat_format, example, settings.max_length, settings.too_long)
            if isinstance(tokens, DroppedSample):
                self.dropped.append(tokens.refusal)
                self.lost_tokens += tokens.tokens
                continue
            self.truncated_rows += tokens.truncated
            self.lost_tokens += tokens.lost_tokens
            if not tokens.truncated:
                last = max(place for place, learned in enumerate(tokens.learned) if learned)
                self.last_tokens |= {tokens.ids[last]}
            yield example.id, tokens


def _require_rows(token_cache: TokenCache, rows: _Rows) -> None:
    if not len(token_cache):
        reasons = "; ".join(sorted({refusal.reason for refusal in rows.dropped})) or "the selection is empty"
        raise DataError(
            f"No row is left to train on: {len(rows.dropped)} dropped ({reasons}). "
            "Expected: at least one. Raise train.max_length, or select other rows."
        )


def _facts(
    project: Project, model_path: Path, token_cache: TokenCache, ranks: ProcessGroup, strategy: Strategy
) -> Facts:
    """What a checkpoint must share with the training that continues it."""
    settings = project.train.model_dump(mode="json", exclude={key.removeprefix("train.") for key in free_on_resume()})
    used = {"full": (), "lora": ("lora",), "qlora": ("lora", "quantization")}[project.train.method]
    for unused in {"lora", "quantization"}.difference(used):
        settings.pop(unused)
    weights = sorted([*model_path.glob("config.json"), *model_path.glob("*.safetensors")])
    return {
        "seed": project.seed,
        "rows": len(token_cache),
        "digest of the rows": token_cache.digest,
        STEP_SAMPLES: samples_per_step(project.train, ranks.count),
        "files of the base model": {file.name: file.stat().st_size for file in weights},
        "model.dtype": project.model.dtype,
        SHARING: fact_of(strategy, ranks.count),
        **{f"train.{name}": value for name, value in settings.items()},
    }


def _summary(
    token_cache: TokenCache, counted: _Rows, course: Course, choice: Choice, ranks: ProcessGroup
) -> TrainingSummary:
    total = course.meter.since_start
    return TrainingSummary(
        rows=len(token_cache),
        dropped=tuple(counted.dropped),
        truncated_rows=counted.truncated_rows,
        lost_tokens=counted.lost_tokens,
        lost_share=counted.lost_tokens / (token_cache.tokens + counted.lost_tokens),
        steps=course.step,
        tokens=total.tokens,
        padding_rate=total.padding_rate,
        seconds=total.seconds,
        peak_memory_bytes=course.meter.peak_memory_bytes,
        mfu=total.mfu,
        last_loss=course.meter.last_loss,
        processes=ranks.count,
        strategy=choice.strategy,
        strategy_because=choice.why,
    )
