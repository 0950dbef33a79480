"""Greedy completions of token prompts, a batch at a time, through one network with a key-value cache.

Rows are padded on the left and count their positions from their own first token, so what a row becomes depends on
neither its neighbours nor the batch (in float32; exact ties of two logits aside). Finished rows leave the batch. No
sampling, no beams; `generate_batch` of transformers does the same on a GPU but is slower on a CPU.

Axes: B rows in the batch, P prompt tokens after padding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from codetune.errors import CodetuneError, InputError

# Looking for stop strings at every token would cost as much as a tiny model itself; up to 7 tokens are cut off again.
STOP_CHECK_TOKENS = 8


class BatchGenerator:
    """Implements `benchmark.generate.Generator`. Ends at the EOS of model or tokenizer and at `end_of_turn`, the chat
    family's own closing texts."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end_of_turn: Sequence[str]) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._end_tokens = _eos_tokens(model, tokenizer) | {
            vocabulary[text] for text in end_of_turn if text in vocabulary
        }
        self._end_texts = tuple(text for text in end_of_turn if text not in vocabulary)
        self._window: int | None = getattr(model.config, "max_position_embeddings", None)

    def complete(
        self, prompts: Sequence[Sequence[int]], stops: Sequence[Sequence[str]], max_new_tokens: int
    ) -> list[str]:
        """The text behind each prompt; before the first of its stop strings, and without the token that ended it. A
        batch too large for the memory is halved; a prompt that fills the model's window is an error."""
        rows = [
            _Row(list(prompt), (*stop, *self._end_texts), self._room(len(prompt), max_new_tokens))
            for prompt, stop in zip(prompts, stops, strict=True)
        ]
        self._complete_rows(rows)
        return [self._text(row) for row in rows]

    def _complete_rows(self, rows: list[_Row]) -> None:
        try:
            self._decode(rows)
            return
        except torch.OutOfMemoryError as why:
            if len(rows) == 1:
                raise CodetuneError(
                    f"Out of memory while completing one prompt of {len(rows[0].prompt)} tokens. Expected: room for it "
                    "and generate.max_new_tokens. Lower that, use a smaller dtype, or a larger GPU."
                ) from why
        # Outside of the handler: its traceback would keep the tensors.
        torch.cuda.empty_cache()
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            self._complete_rows(half)

    @torch.inference_mode()
    def _decode(self, rows: list[_Row]) -> None:
        device = self._model.device
        ids, mask = _pad_left([row.prompt for row in rows], device)  # [B, P] both
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        alive = rows
        for row in rows:  # a larger batch may have begun with them
            row.tokens, row.done = [], False
        while alive:
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = output.logits[:, -1].argmax(-1)  # [B, V] -> [B]
            for row, token in zip(alive, chosen.tolist(), strict=True):
                self._advance(row, token)
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            positions, ids = positions[:, -1:] + 1, chosen[:, None]
            # Rows that are done go along until they are half of the batch: moving the cache costs, too.
            left = [index for index, row in enumerate(alive) if not row.done]
            if len(left) <= len(alive) // 2:
                kept = torch.tensor(left, device=device, dtype=torch.long)
                cache.batch_select_indices(kept)
                mask, positions, ids = mask[kept], positions[kept], ids[kept]
                alive = [alive[index] for index in left]

    def _advance(self, row: _Row, token: int) -> None:
        if row.done:
            return
        if token in self._end_tokens:
            row.done = True
            return
        row.tokens.append(token)
        row.done = len(row.tokens) >= row.room
        if not row.done and len(row.tokens) % STOP_CHECK_TOKENS == 0:
            row.done = self._has_stop(row)

    def _has_stop(self, row: _Row) -> bool:
        # A stop that has just appeared ends in the last few tokens, and a token is at least a byte.
        recent = STOP_CHECK_TOKENS + max((len(stop.encode()) for stop in row.stops), default=0)
        tail = self._plain(row.tokens[-recent:])
        # Decoded from the middle a text can differ at its edge, so the whole has the last word.
        return _first_stop(tail, row.stops) is not None and _first_stop(self._written(row), row.stops) is not None

    def _text(self, row: _Row) -> str:
        written = self._written(row)
        return written[: _first_stop(written, row.stops)]

    def _written(self, row: _Row) -> str:
        """Decoded behind the prompt: alone, a SentencePiece tokenizer would drop the first token's leading space."""
        before, whole = self._plain(row.prompt), self._plain(row.prompt + row.tokens)
        return whole[len(before) :] if whole.startswith(before) else self._plain(row.tokens)

    def _plain(self, tokens: list[int]) -> str:
        # Without the clean-up that old configurations ask for: it takes spaces out of code.
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one sequence, one text
        return text

    def _room(self, prompt_tokens: int, max_new_tokens: int) -> int:
        if self._window is None:
            return max_new_tokens
        if prompt_tokens >= self._window:
            raise InputError(
                f"A prompt of {prompt_tokens} tokens fills the model's window of {self._window}. Expected: room for an "
                "answer. Use a model with a longer window, or a benchmark with shorter prompts."
            )
        return min(max_new_tokens, self._window - prompt_tokens)


@dataclass(slots=True)
class _Row:
    prompt: list[int]
    stops: tuple[str, ...]
    room: int  # new tokens at most
    tokens: list[int] = field(default_factory=list)
    done: bool = False


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop string begins."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(found, default=None)


def _eos_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    tokens: set[int] = set()
    for named in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        tokens |= set() if named is None else set(named) if isinstance(named, list | tuple) else {int(named)}
    return tokens


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # masked, so any token will do
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
