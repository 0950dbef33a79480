"""Completions of token prompts, greedy or sampled, a batch at a time through one network with a key-value cache.

Rows are padded on the left and count their positions from their own first token, so what a row becomes depends on
neither its neighbours nor the batch (in float32; exact ties of two logits aside). Finished rows leave the batch. No
beams. A network that would carry padding in a state gets rows of one length together, by `recurrent.py`. On a GPU with
flash attention `continuous.py` is the greedy way.

Processes that hold one network together go through the same batches in step: tokens are as the first one chooses them.

Axes: B rows in the batch, P prompt tokens after padding, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from codetune.errors import CodetuneError, InputError
from codetune.launch.process_group import SINGLE_PROCESS, ProcessGroup
from codetune.model.decoding import STOP_CHECK_TOKENS, GeneratedText, GenerationRequest, StopCriteria, sample, uniform
from codetune.model.tensor_parallel import kv_cache_ranks
from codetune.project.sections import Generation

# Of a tiny model on two cores 32 to 64 is the fastest.
ROWS_ON_CPU = 32
MOST_ROWS_ON_GPU = 256  # more wait for the longest among them
# The cache grows by copying, and the prompts' activations want room as well.
SHARE_FOR_CACHE = 0.4
# What is masked by positions, so that padding can be; a kind of layer that is not known here counts as recurrent.
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


class BatchGenerator:
    """Implements `decoding.Decoder`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_of_turn: Sequence[str],
        settings: Generation,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._model: Any = model
        self._is_recurrent = is_recurrent(model)
        self._team = group
        self._endings = StopCriteria(tokenizer, [model.config, model.generation_config], end_of_turn)
        self._settings = settings

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Number and completion of each request as it is finished, in batches in the given order. A batch too large
        for the memory is halved, and those after it are no larger."""
        _require_embedded(self._model, requests)
        most = self._settings.max_new_tokens
        rows = [_Row(number, request, self._endings.room(request, most)) for number, request in enumerate(requests)]
        size = self._batch_size(rows)
        while waiting := [row for row in rows if not row.done]:
            batch = _of_one_length(waiting)[:size] if self._is_recurrent else waiting[:size]
            try:
                for row in self._decode_in_step(batch) if self._is_recurrent else self._decode(batch):
                    yield row.number, self._endings.written(row.request, row.tokens)
            except torch.OutOfMemoryError as why:
                if self._team.count > 1:  # the others wait in the middle of the network, and cannot begin again
                    raise CodetuneError(
                        f"Out of memory while completing {len(batch)} prompts over {self._team.count} GPUs. Expected: "
                        "room for as many. Nothing that was finished is lost: set generate.batch_size to a smaller "
                        "number, and run the command again"
                    ) from why
                if len(batch) == 1:
                    raise CodetuneError(
                        f"Out of memory while completing one prompt of {len(batch[0].request.prompt)} tokens. "
                        "Expected: room for it and generate.max_new_tokens. Lower that, use a smaller dtype, or a "
                        "larger GPU."
                    ) from why
                size = len(batch) // 2
            else:
                continue
            # Outside of the handler: its traceback would keep the tensors.
            torch.cuda.empty_cache()

    def _batch_size(self, rows: Sequence[_Row]) -> int:
        if self._is_recurrent and not takes_several_rows(self._model):
            return 1
        if self._settings.batch_size != "auto":
            return self._settings.batch_size
        if self._model.device.type != "cuda" or self._is_recurrent:  # whose memory nobody can tell beforehand
            return ROWS_ON_CPU
        longest = max((len(row.request.prompt) + row.room for row in rows), default=1)
        free = int(self._team.min(torch.cuda.mem_get_info(self._model.device)[0]))
        per_token = cache_bytes_per_token(self._model.config, self._model.dtype)
        return rows_that_fit(free, longest * per_token // kv_cache_ranks(self._model.config, self._team.count))

    @torch.inference_mode()
    def _decode(self, rows: list[_Row]) -> Iterator[_Row]:
        """The rows as they are finished."""
        device = self._model.device
        ids, mask = _pad_left([row.request.prompt for row in rows], device)  # [B, P] both
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        alive = rows
        for row in rows:  # a larger batch may have begun with them
            row.tokens = []
        while alive:
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = self._team.broadcast(self._choose(output.logits[:, -1], alive))  # [B, V] -> [B]
            for row, token in zip(alive, chosen.tolist(), strict=True):
                if not row.done and self._is_done(row, token):
                    row.done = True
                    yield row
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            positions, ids = positions[:, -1:] + 1, chosen[:, None]
            # Rows that are done go along until they are half of the batch: moving the cache costs, too.
            left = [index for index, row in enumerate(alive) if not row.done]
            if len(left) <= len(alive) // 2:
                kept = torch.tensor(left, device=device, dtype=torch.long)
                cache.batch_select_indices(kept)
                mask, positions, ids = mask[kept], positions[kept], ids[kept]
                alive = [alive[index] for index in left]

    def _decode_in_step(self, rows: list[_Row]) -> list[_Row]:
        """Rows with prompts of one length, all finished."""
        over = [False] * len(rows)
        for row in rows:  # a larger batch may have begun with them
            row.tokens = []

        def take(logits: torch.Tensor) -> tuple[torch.Tensor, bool]:
            chosen = self._team.broadcast(self._choose(logits, rows))  # [B, V] -> [B]
            for index, token in enumerate(chosen.tolist()):
                over[index] = over[index] or self._is_done(rows[index], token)
            return chosen, all(over)

        with torch.inference_mode():
            run_in_step(self._model, [row.request.prompt for row in rows], max(row.room for row in rows), take)
        for row in rows:
            row.done = True
        return rows

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        if self._settings.temperature == 0:
            return logits.argmax(-1)
        numbers = [uniform(row.request.stream, len(row.tokens)) for row in rows]
        return sample(logits, self._settings.temperature, self._settings.top_p, numbers)

    def _is_done(self, row: _Row, token: int) -> bool:
        """Takes the token up and says whether it was the last."""
        row.tokens.append(token)
        if token in self._endings.tokens or len(row.tokens) >= row.room:
            return True
        return len(row.tokens) % STOP_CHECK_TOKENS == 0 and self._endings.has_stop(row.request, row.tokens)


@dataclass(slots=True)
class _Row:
    number: int
    request: GenerationRequest
    room: int  # new tokens at most
    tokens: list[int] = field(default_factory=list)
    done: bool = False


def _require_embedded(model: Any, requests: Sequence[GenerationRequest]) -> None:
    """A tokenizer may have more tokens than the network, as long as none of them is written."""
    known = model.get_input_embeddings().weight.shape[0]
    largest = max((token for request in requests for token in request.prompt), default=0)
    if largest >= known:
        raise InputError(
            f"A prompt has the token {largest}, and the model knows {known:,}: its tokenizer belongs to another model, "
            "or tokens were added to it only. Expected: tokens below that number. Put the model's own tokenizer beside "
            "its weights."
        )


def _of_one_length(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if len(row.request.prompt) == len(rows[0].request.prompt)]


def rows_that_fit(free_bytes: int, bytes_per_row: int) -> int:
    """
    >>> rows_that_fit(free_bytes=10 * 2**30, bytes_per_row=2**27)  # 4 GB of 128 MB each
    32
    """
    return min(max(1, int(free_bytes * SHARE_FOR_CACHE / bytes_per_row)), MOST_ROWS_ON_GPU)


def cache_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of every layer; a sliding window would need less."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(width) * dtype.itemsize


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # masked, so any token will do
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


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
