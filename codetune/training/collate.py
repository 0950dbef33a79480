"""The micro-batches of an optimizer step -> tensors.

One item of the loader is a whole step of this process. Positions are flat, over the micro-batch's rows laid end to end:
`positions[i]` is where the token before the learned token `targets[i]` stands. No attention mask is needed: padding
stands at the right, where a causal model's real tokens never look, and flat rows carry their segments.

Packed samples are one flat row in every mode; what sees what is a matter of its segments. Isolated, each sample is one.
With `pack_isolation: false` (published packing) a stretch of at most the maximum length is: its samples see those
before them, and positions run on. The padding of `paper_pack` is a segment of its own, so that it costs the model what
a padded row costs.

Axes: B rows, T tokens of a row, N learned tokens of the micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codetune.data.packing import PACKED, PackedRow, pack
from codetune.data.token_cache import Sample
from codetune.model.attention import packed_inputs
from codetune.project.sections import PadMode


@dataclass(frozen=True, slots=True)
class Collator:
    pad_mode: PadMode
    max_length: int
    isolated: bool
    pad_token: int

    def __call__(self, micro_batches: Sequence[Sequence[Sample]]) -> dict[str, Any]:
        """`shift_labels` is what the Trainer counts to find how many tokens the step's loss is the mean over."""
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

    def _micro_batch(self, drawn: Sequence[Sample]) -> dict[str, Any]:
        rows = pack([len(sample) for sample in drawn], self.pad_mode, self.max_length)
        samples = [drawn[at] for row in rows for at in row.samples]
        places = [np.flatnonzero(sample.learned[1:]) for sample in samples]
        starts = _starts(rows, drawn)
        positions = np.concatenate([start + place for start, place in zip(starts, places, strict=True)])
        targets = np.concatenate([sample.tokens[1:][place] for sample, place in zip(samples, places, strict=True)])
        return {
            "inputs": self._flat(rows, drawn) if self.pad_mode in PACKED else self._padded(rows, drawn),
            "positions": torch.from_numpy(positions),  # [N]
            "targets": torch.from_numpy(targets),  # [N]
            "tokens_seen": sum(len(sample) for sample in drawn) + sum(row.padding for row in rows),
            "rows": [sample.id for sample in samples],
            "row_ends": np.cumsum([len(place) for place in places]).tolist(),  # of each row's targets
        }

    def _padded(self, rows: Sequence[PackedRow], drawn: Sequence[Sample]) -> dict[str, Any]:
        ids = [torch.cat([*_tokens(row, drawn), self._padding(row)]) for row in rows]
        return {"input_ids": torch.stack(ids)}  # [B, T]

    def _flat(self, rows: Sequence[PackedRow], drawn: Sequence[Sample]) -> dict[str, Any]:
        segments: list[torch.Tensor] = []
        for row in rows:
            tokens = _tokens(row, drawn)
            segments += tokens if self.isolated else [torch.cat(tokens)]
            segments += [self._padding(row)] if row.padding else []
        return packed_inputs(segments)

    def _padding(self, row: PackedRow) -> torch.Tensor:
        return torch.full((row.padding,), self.pad_token)

    def _idle(self) -> dict[str, Any]:
        """For a process that has no sample left while others do: it must take part in their exchange of gradients, to
        which this adds zeros. No count knows of it."""
        ids = torch.full((2,), self.pad_token)
        none = torch.zeros(0, dtype=torch.int64)
        inputs = packed_inputs([ids]) if self.pad_mode in PACKED else {"input_ids": ids[None]}
        return {"inputs": inputs, "positions": none, "targets": none, "tokens_seen": 0, "rows": [], "row_ends": []}


def _tokens(row: PackedRow, drawn: Sequence[Sample]) -> list[torch.Tensor]:
    return [torch.from_numpy(drawn[at].tokens) for at in row.samples]


def _starts(rows: Sequence[PackedRow], drawn: Sequence[Sample]) -> list[int]:
    """Where each sample begins when the rows, with their padding, are laid end to end."""
    starts, at = [], 0
    for row in rows:
        for number in row.samples:
            starts.append(at)
            at += len(drawn[number])
        at += row.padding
    return starts
