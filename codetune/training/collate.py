"""The samples of an optimizer step -> its micro-batches as tensors, and the loss of one of them.

One item of the loader is a whole step of this process. Positions are flat, over the micro-batch's rows laid end to end:
`positions[i]` is where the token before the learned token `targets[i]` stands. No attention mask is needed: padding
stands at the right, where a causal model's real tokens never look, and flat rows carry their segments.

Axes: B rows, T tokens of a row, N learned tokens of the micro-batch, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codetune.data.packing import micro_batches, tokens_seen
from codetune.model.attention import flat_row
from codetune.project import PadMode
from codetune.training.corpus import Sample


@dataclass(frozen=True, slots=True)
class Collator:
    pad_mode: PadMode
    samples_per_micro_batch: int
    max_length: int
    pad_token: int

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`shift_labels` is what the Trainer counts to find how many tokens the step's loss is the mean over."""
        if not samples:
            return self._idle()
        lengths = [len(sample) for sample in samples]
        groups = micro_batches(lengths, self.pad_mode, self.samples_per_micro_batch)
        batches = [self._micro_batch([samples[position] for position in group]) for group in groups]
        targets = torch.cat([batch["targets"] for batch in batches])
        return {
            "micro_batches": batches,
            "labels": targets,
            "shift_labels": targets,
            "tokens": sum(lengths),
            "tokens_seen": sum(
                tokens_seen([lengths[position] for position in group], self.pad_mode, self.max_length)
                for group in groups
            ),
            "samples": len(samples),
        }

    def _idle(self) -> dict[str, Any]:
        """Of a process without a sample in a step: it still shares gradients with the others, of a loss of 0."""
        pad = np.full(2, self.pad_token)
        batch = self._micro_batch([Sample("", pad, np.array([False, True]))])
        batch |= {"rows": [], "row_ends": [], "weight": 0.0}
        nothing = torch.zeros(0, dtype=torch.int64)
        counts = {"tokens": 0, "tokens_seen": 0, "samples": 0}
        return {"micro_batches": [batch], "labels": nothing, "shift_labels": nothing, **counts}

    def _micro_batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        inputs = self._inputs([torch.from_numpy(sample.tokens) for sample in samples])
        packed = self.pad_mode == "dynamic_pack"
        width = inputs["input_ids"].shape[1]
        starts = np.cumsum([0, *(len(sample) if packed else width for sample in samples)])
        places = [np.flatnonzero(sample.learned[1:]) for sample in samples]
        positions = np.concatenate([start + place for start, place in zip(starts, places, strict=False)])
        targets = np.concatenate([sample.tokens[1:][place] for sample, place in zip(samples, places, strict=True)])
        return {
            "inputs": inputs,
            "positions": torch.from_numpy(positions),  # [N]
            "targets": torch.from_numpy(targets),  # [N]
            "rows": [sample.id for sample in samples],
            "row_ends": np.cumsum([len(place) for place in places]).tolist(),  # of each row's targets
        }

    def _inputs(self, samples: Sequence[torch.Tensor]) -> dict[str, Any]:
        if self.pad_mode == "dynamic_pack":
            return flat_row(samples)
        width = self.max_length if self.pad_mode == "max_length" else max(len(sample) for sample in samples)
        ids = torch.full((len(samples), width), self.pad_token)  # [B, T]
        for row, sample in enumerate(samples):
            ids[row, : len(sample)] = sample
        return {"input_ids": ids}


def token_losses(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Cross-entropy of each learned token in float32, in nats. [N]"""
    if "segments" in batch["inputs"]:
        # One row, so the model can be told to make logits at these positions only.
        output = model(**batch["inputs"], use_cache=False, logits_to_keep=batch["positions"])
        logits = output.logits[0]  # [N, V]
    else:
        logits = model(**batch["inputs"], use_cache=False).logits.flatten(0, 1)[batch["positions"]]  # [N, V]
    return torch.nn.functional.cross_entropy(logits.float(), batch["targets"], reduction="none")
