"""Problems -> what a model writes for them, greedily: batches of prompts of about equal length, longest first, so
that a machine too small for the work fails at once. Yields as batches are finished; leaving out tasks that are done is
for the caller. The network is behind `Generator` (`model/complete.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from codetune.benchmark.prompt import Prompt, make_prompt
from codetune.project import Generation
from codetune.records import Completion, Problem, Solution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of a tiny model on two cores 32 to 64 is the fastest; 32 rows of a 7B model at 1,500 tokens take 25 GB of cache.
AUTO_BATCH_SIZE = 32


class Generator(Protocol):
    def complete(
        self, prompts: Sequence[Sequence[int]], stops: Sequence[Sequence[str]], max_new_tokens: int
    ) -> list[str]:
        """The text behind each prompt, up to an end token or before the first of that prompt's stops."""


def generate(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    generator: Generator,
    settings: Generation,
) -> Iterator[Completion | Solution]:
    """A raw prompt's continuation is a `Completion`, a chat answer a `Solution` that still has to be sanitized: the
    two forms of EvalPlus. `settings.prompt` has been decided (not `auto`)."""
    kind = settings.prompt
    assert kind != "auto"
    prompts = [(problem, make_prompt(problem, tokenizer, kind)) for problem in problems]
    size = AUTO_BATCH_SIZE if settings.batch_size == "auto" else settings.batch_size
    record = Solution if kind == "chat" else Completion
    for batch in _batches(prompts, size):
        texts = generator.complete(
            [prompt.tokens for _, prompt in batch], [prompt.stops for _, prompt in batch], settings.max_new_tokens
        )
        for (problem, _), text in zip(batch, texts, strict=True):
            yield record(problem.task_id, text)


def _batches(prompts: Sequence[tuple[Problem, Prompt]], size: int) -> Iterator[Sequence[tuple[Problem, Prompt]]]:
    # Ties by id, so that the batches do not follow the order of the file.
    ordered = sorted(prompts, key=lambda pair: (-len(pair[1].tokens), pair[0].task_id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
