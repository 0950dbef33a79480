"""pass@1 of the network that is being trained, on tasks that are kept apart (`train.tasks`): what a training needs to
know of them, and the state in which its network generates. How answers are made and judged, the caller knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from codetune.launch.process_group import ProcessGroup
from codetune.model.adapters import base_network
from codetune.model.attention import set_default_attention
from codetune.model.plain_layers import evaluation_mode
from codetune.project.sections import Project
from codetune.training.export import trained_generation_config


@dataclass(frozen=True, slots=True)
class TaskMeasure:
    """`count` tasks, known by `digest`. `judge` answers and judges them with a network, in all ranks together; it
    returns how many passed and how many were judged in this rank."""

    digest: str
    count: int
    judge: Callable[[PreTrainedModel], tuple[int, int]]


def task_judge(
    measure: TaskMeasure,
    model: PreTrainedModel | PeftModel,
    project: Project,
    tokenizer: PreTrainedTokenizerBase,
    answer_end_tokens: frozenset[int],
    group: ProcessGroup,
) -> Callable[[], tuple[int, int]]:
    """A function that judges `model` as it is when it is called. `answer_end_tokens` are those that rank 0 found. A
    collective call."""
    chat_format = project.model.chat_format
    assert chat_format is not None  # found before the work began
    ends = frozenset[int](json.loads(group.gather(json.dumps(sorted(answer_end_tokens)))[0]))
    config, network = trained_generation_config(tokenizer, chat_format, ends), base_network(model)

    def judge() -> tuple[int, int]:
        with evaluation_mode(model), _generating(network, config):
            return measure.judge(network)

    return judge


@contextmanager
def _generating(network: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Inside the block the network generates as the finished model will: with its own attention instead of one for
    packed rows, and with `config`. Afterwards it is as before."""
    attention, own = network.config._attn_implementation, network.generation_config
    set_default_attention(network)
    network.generation_config = config
    try:
        yield
    finally:
        network.generation_config = own
        network.set_attn_implementation(attention)
