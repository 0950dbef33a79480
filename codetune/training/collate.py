"""The micro-batches of an optimizer step -> tensors. One item of the data loader is a whole step of this rank.

Positions are flat, over the rows of the micro-batch laid end to end: the token before the learned token `targets[n]` is
at `positions[n]`. No attention mask is needed: padding is on the right, where the tokens of a causal model do not
attend, and flat rows carry their segments.

Packed samples form one flat row, whose segments say which tokens attend to each other. With `pack_isolation: true`
each sample is a segment. With `false` (as published) each row of at most the maximum length is one: its samples attend
to those before them, and positions continue. The padding of `paper_pack` is a segment of its own, so it costs the model
as much as a padded row.

Axes: B rows, T tokens of a row, N learned tokens of the micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from codetune.data.packing import PACKED, PackedRow, pack
from codetune.data.token_cache import Sample
from codetune.model.attention import packed_inputs
from codetune.project.sections import PadMode


class MicroBatchTensors(TypedDict):
    inputs: dict[str, object]  # keyword arguments of the model's forward
    positions: torch.Tensor  # [N]
    targets: torch.Tensor  # [N]
    tokens_seen: int  # padding included
    rows: list[str]  # ids of the samples
    row_ends: list[int]  # where the targets of each sample end in [N]


class StepTensors(TypedDict):
    micro_batches: list[MicroBatchTensors]
    labels: torch.Tensor  # [N of all micro-batches]
    shift_labels: torch.Tensor  # the same; the Trainer counts them to find the tokens that the loss is the mean over
    tokens: int
    tokens_seen: int
    token_pairs: int  # sum of the squared sample lengths
    samples: int


@dataclass(frozen=True, slots=True)
class Collator:
    pad_mode: PadMode
    max_length: int
    isolated: bool
    pad_token: int

    def __call__(self, micro_batches: Sequence[Sequence[Sample]]) -> StepTensors:
        batches = [self._micro_batch(samples) if samples else self._idle() for samples in micro_batches]
        targets = torch.cat([batch["targets"] for batch in batches])
        lengths = [len(sample) for samples in micro_batches for sample in samples]
        return {
            "micro_batches": batches,
            "labels": targets,
            "shift_labels": targets,
            "tokens": sum(lengths),
            "tokens_seen": sum(batch["tokens_seen"] for batch in batches),
            "token_pairs": sum(length * length for length in lengths),
            "samples": len(lengths),
        }

    def _micro_batch(self, drawn: Sequence[Sample]) -> MicroBatchTensors:
        rows = pack([len(sample) for sample in drawn], self.pad_mode, self.max_length)
        samples = [drawn[index] for row in rows for index in row.samples]
        # The token before a learned one predicts it, so the first token of a sample is never a target.
        predicting = [np.flatnonzero(sample.learned[1:]) for sample in samples]
        offsets = _sample_offsets(rows, drawn)
        positions = [offset + local for offset, local in zip(offsets, predicting, strict=True)]
        targets = [sample.tokens[1:][local] for sample, local in zip(samples, predicting, strict=True)]
        return {
            "inputs": self._flat(rows, drawn) if self.pad_mode in PACKED else self._padded(rows, drawn),
            "positions": torch.from_numpy(np.concatenate(positions)),
            "targets": torch.from_numpy(np.concatenate(targets)),
            "tokens_seen": sum(len(sample) for sample in drawn) + sum(row.padding for row in rows),
            "rows": [sample.id for sample in samples],
            "row_ends": np.cumsum([len(local) for local in predicting]).tolist(),
        }

    def _padded(self, rows: Sequence[PackedRow], drawn: Sequence[Sample]) -> dict[str, object]:
        ids = [torch.cat([*_tokens(row, drawn), self._padding(row)]) for row in rows]
        return {"input_ids": torch.stack(ids)}  # [B, T]

    def _flat(self, rows: Sequence[PackedRow], drawn: Sequence[Sample]) -> dict[str, object]:
        segments: list[torch.Tensor] = []
        for row in rows:
            tokens = _tokens(row, drawn)
            segments += tokens if self.isolated else [torch.cat(tokens)]
            segments += [self._padding(row)] if row.padding else []
        return packed_inputs(segments)

    def _padding(self, row: PackedRow) -> torch.Tensor:
        return torch.full((row.padding,), self.pad_token)

    def _idle(self) -> MicroBatchTensors:
        """Two pad tokens without targets, with which a rank without samples takes part in the all-reduce of gradients:
        it adds zeros. No metric counts them."""
        ids = torch.full((2,), self.pad_token)
        empty = torch.zeros(0, dtype=torch.int64)
        inputs: dict[str, object] = packed_inputs([ids]) if self.pad_mode in PACKED else {"input_ids": ids[None]}
        return {"inputs": inputs, "positions": empty, "targets": empty, "tokens_seen": 0, "rows": [], "row_ends": []}


def _tokens(row: PackedRow, drawn: Sequence[Sample]) -> list[torch.Tensor]:
    return [torch.from_numpy(drawn[index].tokens) for index in row.samples]


def _sample_offsets(rows: Sequence[PackedRow], drawn: Sequence[Sample]) -> list[int]:
    """The offset of each sample's first token when the rows, with their padding, are laid end to end."""
    offsets, end = [], 0
    for row in rows:
        for index in row.samples:
            offsets.append(end)
            end += len(drawn[index])
        end += row.padding
    return offsets
