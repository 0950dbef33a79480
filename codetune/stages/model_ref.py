"""A model as a benchmark sees it: what `tuned`, `base`, a path, a checkpoint or a Hub id stands for, the digest that
its results are kept by, and how it is prompted. Loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from codetune.errors import UsageError
from codetune.model.file_check import ADAPTER_CONFIG
from codetune.model.model_files import base_model_name, find_model, tokenizer_directory
from codetune.project.keys import required
from codetune.project.sections import ChatFormat
from codetune.records import BASE, TUNED, ModelRef, PromptKind
from codetune.stages.resume import RECIPE, TRAINED
from codetune.stages.stage import RunContext
from codetune.stages.status import require
from codetune.stages.train import TRAIN
from codetune.store.digests import combined
from codetune.training.checkpoint import sealed_checkpoints

# The part that is read of a training's record (`resume.record_of`).
_TrainingRecord = TypedDict("_TrainingRecord", {"model.chat_format": ChatFormat, "model.path": str}, total=False)


def model_ref(context: RunContext, name: str) -> ModelRef:
    """The model that `tuned`, `base`, a path (also of a checkpoint) or a Hub id stands for, and how it is prompted."""
    project = context.project
    if not name.strip():
        raise UsageError("--model is empty; expected tuned, base, a path or a Hub id, such as --model base")
    if name == TUNED:
        require(context, TRAIN)
        directory = context.run.model
    else:
        said = required(project.model.path, "model.path") if name == BASE else name
        directory = find_model(project.locate(said))
    training = _training_of(directory)
    chat_format = training.get("model.chat_format")
    tokenizer, digest = tokenizer_directory(directory), model_digest(context, directory)
    if training and _is_checkpoint(directory):
        tokenizer = find_model(project.locate(training["model.path"]))
        digest = combined([digest, str(chat_format), context.digests.tree(tokenizer)])
    label = name if name in (BASE, TUNED) else f"{directory.resolve().name}-{digest[:8]}"
    return ModelRef(name, label, directory, tokenizer, digest, prompt_kind(context, name, directory), chat_format)


def default_model(context: RunContext, said: str | None, instead: str = "") -> str:
    """`tuned` where the run has one; otherwise the user has to say which. Raises UsageError, which names `instead`."""
    if said is not None:
        return said
    if context.run.model.exists():
        return TUNED
    raise UsageError(
        f"{context.run.directory} has no trained model, so --model must say which; expected base, a path or a Hub id, "
        f"such as --model base{instead}. Or train one: codetune train"
    )


def local_directory(context: RunContext, label: str) -> Path | None:
    """The path of `tuned` or `base`; nothing need be there. None where the project names no base model."""
    if label == TUNED:
        return context.run.model
    base = context.project.model.path
    return None if base is None else Path(context.project.locate(base)).expanduser()


def names_of_the_run(context: RunContext, said: Sequence[str]) -> list[str]:
    """The models that are named, every checkpoint, and what the training came to, where it is done."""
    finished = [TUNED] if context.run.model.exists() and TUNED not in said else []
    return [*said, *checkpoint_names(context), *finished]


def checkpoint_names(context: RunContext) -> list[str]:
    """Every whole checkpoint of the run's training, as one would name it, in the order of its steps."""
    # The one that is not finished yet may lie beside the finished one.
    places = (context.run.train, context.run.next_train)
    found = [str(checkpoint.path) for place in places for checkpoint in sealed_checkpoints(place)]
    if not found:
        raise UsageError(
            f"{context.run.train} holds no checkpoint to evaluate. Expected: one at least; train.save_steps and "
            "train.keep_checkpoints say how often they are written and how many stay. Run: codetune train"
        )
    return found


def model_digest(context: RunContext, directory: Path) -> str:
    """The digest of all that decides what a model writes; of adapters together with the model below them."""
    own = context.digests.tree(directory)
    if not (directory / ADAPTER_CONFIG).is_file():
        return own
    return combined([own, model_digest(context, find_model(base_model_name(directory)))])


def prompt_kind(context: RunContext, name: str, directory: Path) -> PromptKind | None:
    """Chat for what codetune trained, completion for `base`; of any other model the user must say it."""
    said = context.project.generate.prompt
    if said != "auto":
        return said
    if name == BASE:
        return "completion"
    return "chat" if _training_of(directory) else None


def end_of_turn(model: ModelRef) -> tuple[str, ...]:
    """The stop strings that close an answer beside EOS, for a model that codetune trained."""
    from codetune.data.chat import stop_strings

    return stop_strings(model.chat_format) if model.kind == "chat" and model.chat_format else ()


def _training_of(directory: Path) -> _TrainingRecord:
    """The settings that codetune trained a model with, by dotted key; empty where it did not."""
    mark = directory.parent / RECIPE if _is_checkpoint(directory) else directory / TRAINED
    if not mark.is_file():
        return {}
    record: _TrainingRecord = json.loads(mark.read_text(encoding="utf-8"))
    return record


def _is_checkpoint(directory: Path) -> bool:
    return (directory.parent / RECIPE).is_file()
