"""Completions by networks that carry a state from token to token (Mamba, RecurrentGemma, Jamba, ...), whole or in part.

Padding would enter such a state, so rows are completed together only where their prompts are equally long; and where
the state is kept, and how a step hands it to the next, is each architecture's own affair. So transformers' own
`generate` runs the network here, and is left nothing to choose: a processor of logits takes the token, as anywhere.

Axes: B rows, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

# What is masked by positions, so that padding can be; a kind of layer that is not known here counts as recurrent.
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def is_recurrent(model: Any) -> bool:
    """Whether padding on the left would change what a row becomes, as far as the network tells."""
    layers = getattr(model.config, "layer_types", None) or ()
    return (
        # transformers' own mark (5.17 to 5.23); some with convolutions lack it
        bool(getattr(model, "_is_stateful", False))
        or not ATTENTION_LAYERS.issuperset(layers)
        or "past_key_values" not in inspect.signature(model.forward).parameters
    )


def takes_several_rows(model: Any) -> bool:
    """RWKV of transformers 5.17 to 5.23 mixes the rows of a batch: [B, D] is added to [B, 1, D]."""
    return not {"past_key_values", "cache_params"}.isdisjoint(inspect.signature(model.forward).parameters)


def run_in_step(
    model: Any, prompts: Sequence[Sequence[int]], most: int, take: Callable[[torch.Tensor], tuple[torch.Tensor, bool]]
) -> None:
    """Feeds prompts of one length and then, `most` times at most, what `take` makes of the logits [B, V]: the token of
    each row [B], and whether that was the last that is wanted."""
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)  # [B, P]
    taker = _Taker(take)
    with _own_settings(model, most):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList([taker]),
            stopping_criteria=StoppingCriteriaList([_NoneWanted(taker)]),
        )


class _Taker(LogitsProcessor):
    """Leaves one token that can be chosen."""

    def __init__(self, take: Callable[[torch.Tensor], tuple[torch.Tensor, bool]]) -> None:
        self._take = take
        self.was_last = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen, self.was_last = self._take(scores)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)  # [B, V]


class _NoneWanted(StoppingCriteria):
    def __init__(self, taker: _Taker) -> None:
        self._taker = taker

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._taker.was_last, device=input_ids.device)


@contextmanager
def _own_settings(model: Any, most: int) -> Iterator[None]:
    """Else what a model's generation configuration says (penalties, suppressed tokens) would be done to the logits."""
    before = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=most, use_cache=True
    )
    try:
        yield
    finally:
        model.generation_config = before
