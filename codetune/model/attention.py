"""Attention for flat rows: samples laid end to end, each of which sees itself alone.

    tokens     a a a b b        a's query sees a, b's sees b, both causally:     a .
    segments   (3, 2)           one exact product per segment, no mask           a a
                                                                                 a a a
                                                                                       b
                                                                                       b b
Axes: B rows (1 here), H heads, T tokens, D head dimension. Registered with transformers' AttentionInterface under
`SEGMENTED`; `attention_for` says when it is used, `require_isolation` tries on the model itself that nothing leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from codetune.errors import ModelError
from codetune.project import PadMode

SEGMENTED = "codetune_segmented"


def attention_for(asked: str, pad_mode: PadMode) -> str:
    """The implementation to set: `auto` is segment by segment for flat rows, and torch's own for padded ones.

    `sdpa` and `eager` isolate flat rows too, by a dense mask that transformers builds from restarted positions.
    """
    if asked != "auto":
        return asked
    return SEGMENTED if pad_mode == "dynamic_pack" else "sdpa"


def segmented_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: tuple[int, ...] | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of `segments` (lengths that add up to T), for one flat row."""
    _require_plain(module, segments, query, others)
    assert segments is not None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # [B, H, T, D]
    # split, not slices: its backward is one concatenation, that of n slices n additions over the whole row.
    parts = zip(*(torch.split(states, list(segments), dim=2) for states in (query, key, value)), strict=True)
    attended = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, **_causal(q, sliding_window))
        for q, k, v in parts
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None  # [B, T, H, D]


def require_isolation(model: PreTrainedModel) -> None:
    """Raises where a sample of a flat row is changed by the sample before it."""
    embeddings: torch.nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    device, vocabulary = embeddings.weight.device, embeddings.num_embeddings
    first, other, second = (torch.arange(7, device=device) * step % vocabulary for step in (3, 5, 7))
    was_training = model.training
    model.train(False)
    with torch.no_grad():
        seen = [
            model(**flat_row([before, second]), use_cache=False).logits[:, len(before) :] for before in (first, other)
        ]
    model.train(was_training)
    # The shapes are alike, so an isolated sample gives the same bits; the tolerance is for atomics on a GPU.
    if not torch.allclose(seen[0], seen[1], rtol=0, atol=1e-4 * float(seen[0].abs().max())):
        raise ModelError(
            f"Packed samples see each other in {type(model).__name__} with attention "
            f"{model.config._attn_implementation!r}. Expected: each sees itself alone. Set model.attention: auto, or "
            "train.pad_mode: dynamic_pad."
        )


def flat_row(samples: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The model's inputs for samples laid end to end: positions start anew with each."""
    return {
        "input_ids": torch.cat(list(samples))[None],  # [1, T]
        "position_ids": torch.cat([torch.arange(len(sample), device=sample.device) for sample in samples])[None],
        "segments": tuple(len(sample) for sample in samples),
    }


def _causal(query: torch.Tensor, sliding_window: int | None) -> dict[str, Any]:
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return {"is_causal": True}
    ahead = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
    return {"attn_mask": (ahead >= 0) & (ahead < sliding_window)}  # [T, T]


def _require_plain(
    module: torch.nn.Module, segments: tuple[int, ...] | None, query: torch.Tensor, others: dict[str, Any]
) -> None:
    """Refuses what this function would otherwise get wrong in silence."""
    lacking = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if segments is None:
        lacking.append("segments (the model does not hand them on)")
    elif query.shape[0] != 1 or sum(segments) != query.shape[2]:
        lacking.append(f"rows of the shape {tuple(query.shape)}")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        lacking.append("attention to later tokens")
    if lacking:
        raise ModelError(
            f"{type(module).__name__} needs {', '.join(lacking)}, which attention by segments does not have. Expected: "
            "plain causal attention. Set model.attention: eager, or train.pad_mode: dynamic_pad."
        )


AttentionInterface.register(SEGMENTED, segmented_attention)
