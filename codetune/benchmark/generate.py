"""Tasks and sample numbers -> what a model writes for them: one work list, longest prompts first, so that batches are
of about equal length and a machine too small for the work fails at once. Yields each as it is finished; leaving out
what is done is for the caller. The network is behind `Decoder`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codetune.benchmark.prompt import make_prompt
from codetune.model.decoding import Decoder, GenerationRequest
from codetune.project.sections import Generation
from codetune.records import Completion, Problem, Solution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Work = tuple[Problem, int]  # a task and the number of a sample of it


@dataclass(frozen=True, slots=True)
class Generated:
    """A sample and what it took; `truncated` where the token limit has cut it."""

    sample: Completion | Solution
    tokens: int
    truncated: bool


def generate(
    work: Sequence[Work],
    tokenizer: PreTrainedTokenizerBase,
    decoder: Decoder,
    settings: Generation,
    seed: int,
) -> Iterator[Generated]:
    """A raw prompt's continuation is a `Completion`, a chat answer a `Solution` that still has to be sanitized: the
    two forms of EvalPlus. `settings.prompt` has been decided (not `auto`)."""
    kind = settings.prompt
    assert kind != "auto"
    prompts = {problem.task_id: make_prompt(problem, tokenizer, kind) for problem, _ in work}
    # Ties by id, so that the batches do not follow the order of the file.
    ordered = sorted(work, key=lambda item: (-len(prompts[item[0].task_id].tokens), item[0].task_id, item[1]))
    requests = [
        GenerationRequest(
            prompts[problem.task_id].tokens, prompts[problem.task_id].stops, stream_of(seed, problem, number)
        )
        for problem, number in ordered
    ]
    record = Solution if kind == "chat" else Completion
    for index, written in decoder.complete(requests):
        problem, number = ordered[index]
        yield Generated(record(problem.task_id, written.text, number), written.tokens, written.truncated)


def stream_of(seed: int, problem: Problem, number: int) -> str:
    """The name of a sample's random numbers: of nothing but the seed, the task and which of its samples it is."""
    return f"{seed}/{problem.task_id}/{number}"
