"""Attention for flat rows: samples laid end to end, each of which sees itself alone.

    tokens      a a a b b       a's query sees a, b's sees b, both causally:     a .
    positions   0 1 2 0 1       they start anew with each sample                 a a
    segments    (3, 2)                                                           a a a
    cumulative  0 3 5           longest 3                                              b
                                                                                       b b
`packed_inputs` makes the inputs of any backend; all work forward and backward. On a GPU in half precision `VARLEN` (torch's
own variable-length flash attention) or `FLASH` (flash-attn, where it is installed) does a flat row in one kernel;
`SEGMENTED` is one exact product per segment, anywhere. `attention_implementation` chooses, `require_isolation` tries on the model
itself that nothing leaks. Axes: B rows (1 of flat ones), H heads, K heads of keys and values, T tokens, D head
dimension, N segments.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from codetune.errors import ModelError

SEGMENTED = "codetune_segmented"
VARLEN = "codetune_varlen"
FLASH = "flash_attention_2"  # as transformers calls it
KERNELS = {"varlen": VARLEN, "flash": FLASH}  # what a project asks for -> the implementation to set
_VARLEN_TAKES = frozenset(inspect.signature(varlen_attn).parameters)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Where a network computes, as far as flash attention asks for it."""

    device: str  # cuda, cpu, ...
    capability: tuple[int, int]  # of an NVIDIA GPU, (0, 0) elsewhere
    precision: str  # of the arithmetic (under autocast not that of the weights): float32, bfloat16 or float16
    head_dimension: int  # 0 of a network without attention
    plain: bool  # attention scores are neither capped nor dropped at random

    @classmethod
    def of(cls, network: PreTrainedModel, precision: str, on: str | None = None) -> AttentionSpec:
        """`on` is the device that it is going to compute on, where it does not lie there yet."""
        config, device = network.config.get_text_config(), torch.device(on) if on else network.device
        own, heads = getattr(config, "head_dim", None), getattr(config, "num_attention_heads", None)
        return cls(
            device.type,
            torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
            precision,
            own or (config.hidden_size // heads if heads else 0),
            not (getattr(config, "attn_logit_softcapping", None) or getattr(config, "attention_dropout", 0)),
        )


def attention_implementation(asked: str, flat: bool, place: AttentionSpec) -> str:
    """The implementation to set for flat or padded rows. `auto` is one kernel for a whole flat row where there is one,
    else segment by segment; for padded rows it is torch's own. Raises ModelError where what is asked for cannot work.

    `sdpa` and `eager` isolate flat rows too, by a dense mask that transformers builds from restarted positions.
    """
    if asked in KERNELS:
        require_kernel(asked, place)
        return KERNELS[asked]
    if asked != "auto":
        return asked
    return (fused_kernel(place) or SEGMENTED) if flat else "sdpa"


def set_default_attention(network: PreTrainedModel) -> None:
    """Torch's own; transformers' where the architecture knows no other."""
    try:
        network.set_attn_implementation("sdpa")
    except ValueError:
        network.set_attn_implementation("eager")


def require_no_chunked_attention(network: PreTrainedModel, max_length: int) -> None:
    """For flat rows, and for kernels: attention in chunks (Llama 4) would be counted from the beginning of the row, or
    not be in chunks at all."""
    chunk = getattr(network.config.get_text_config(), "attention_chunk_size", None)
    if chunk is not None and chunk < max_length:
        raise ModelError(
            f"{type(network).__name__} attends in chunks of {chunk} tokens, and train.max_length is {max_length}: "
            "only padded rows and transformers' own attention cut samples where the model does. Expected: those, or "
            f"samples that fit a chunk. Set train.pad_mode: dynamic_pad and model.attention: auto, or "
            f"train.max_length: {chunk}."
        )


def fused_kernel(place: AttentionSpec) -> str | None:
    """The implementation that does a whole flat row in one kernel there, or None."""
    return next((KERNELS[asked] for asked in KERNELS if not unsupported_reason(asked, place)), None)


def require_kernel(asked: str, place: AttentionSpec) -> None:
    if lacks := unsupported_reason(asked, place):
        raise ModelError(
            f"model.attention is {asked}, which cannot work here: {lacks}. Expected: flash attention's needs. Set "
            "model.attention: auto, which takes what does work."
        )


def unsupported_reason(asked: str, place: AttentionSpec) -> str:
    """What keeps a kernel from working in a place; "" where nothing does."""
    if place.device != "cuda":
        return f"it needs an NVIDIA GPU, the model is on {place.device}"
    if place.capability < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    if place.precision not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, model.dtype is {place.precision}"
    if not place.head_dimension or place.head_dimension % 8 or place.head_dimension > 256:
        return f"it needs a head dimension that is a multiple of 8 up to 256, the model has {place.head_dimension}"
    if asked == "flash":
        return "" if is_flash_attn_2_available() else "flash-attn is not installed (pip install 'codetune[flash]')"
    if not place.plain:
        return "the model caps its attention scores or drops some, which torch's variable-length attention does not"
    # Before torch 2.11 it had neither a scale nor a window.
    return "" if {"scale", "window_size"} <= _VARLEN_TAKES else f"torch {torch.__version__} is too old for it"


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """A flat row by torch's own kernel, https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html. Rows without
    cumulative lengths are taken as they are: each sees itself alone, and nothing sees the padding at its right."""
    rows, _, length, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
        max_length_q = length
    _require_plain(
        module, (query, key), others | {"dropout": dropout or None, "attention_mask": attention_mask}, cu_seq_lens_q
    )
    precision = _half_precision(query)
    q, k, v = (states.transpose(1, 2).flatten(0, 1).to(precision) for states in (query, key, value))  # [B * T, H, D]
    more: dict[str, Any] = {}
    if q.shape[1] != k.shape[1] and "enable_gqa" in _VARLEN_TAKES:
        more = {"enable_gqa": True}
    elif q.shape[1] != k.shape[1]:  # torch 2.11
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    # A window of W tokens in transformers is the token itself and W - 1 before it.
    more["window_size"] = (-1 if sliding_window is None else sliding_window - 1, 0)
    cumulative = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    attended = varlen_attn(q, k, v, *cumulative, scale=scaling, **more)
    assert isinstance(attended, torch.Tensor)
    return attended.view(rows, length, *attended.shape[1:]).to(query.dtype), None  # [B, T, H, D]


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
    if segments is None:
        raise _not_plain(module, ["segments (the model does not hand them on)"])
    own = {"attention_mask": attention_mask}  # such as a bias that is learned
    _require_plain(module, (query, key), others | own, torch.tensor([0, sum(segments)]))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # [B, H, T, D]
    # split, not slices: its backward is one concatenation, that of n slices n additions over the whole row.
    parts = zip(*(torch.split(states, list(segments), dim=2) for states in (query, key, value)), strict=True)
    attended = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, **_causal(q, sliding_window))
        for q, k, v in parts
    ]
    return torch.cat([part.transpose(1, 2) for part in attended], dim=1), None  # [B, T, H, D], in one piece


def packed_inputs(samples: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The model's inputs for samples laid end to end: positions start anew with each. `segments` is for `SEGMENTED`,
    the cumulative lengths (by transformers' own names) for the kernels; other backends look at the positions."""
    lengths = [len(sample) for sample in samples]
    device = samples[0].device
    cumulative = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)  # [N + 1]
    return {
        "input_ids": torch.cat(list(samples))[None],  # [1, T]
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        "segments": tuple(lengths),
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _causal(query: torch.Tensor, sliding_window: int | None) -> dict[str, Any]:
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return {"is_causal": True}
    ahead = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
    return {"attn_mask": (ahead >= 0) & (ahead < sliding_window)}  # [T, T]


def _half_precision(query: torch.Tensor) -> torch.dtype:
    """Rotary embeddings give float32 under autocast, which no kernel takes on a GPU."""
    device = query.device.type
    if query.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return query.dtype


def _require_plain(
    module: torch.nn.Module,
    states: tuple[torch.Tensor, torch.Tensor],
    others: dict[str, Any],
    cumulative: torch.Tensor,
) -> None:
    """Refuses what would otherwise be got wrong in silence."""
    (rows, _, length, _), keys = states[0].shape, states[1].shape[2]
    needs = ("softcap", "s_aux", "position_bias", "dropout", "attention_mask")
    lacks = [name for name in needs if others.get(name) is not None]
    if keys != length:
        lacks.append("keys of earlier calls (use_cache)")
    if cumulative.device.type == "cpu" and int(cumulative[-1]) != rows * length:  # on a GPU the look would wait for it
        lacks.append(f"rows of the shape {(rows, length)}")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        lacks.append("attention to later tokens")
    if lacks:
        raise _not_plain(module, lacks)


class UnsupportedAttentionError(ModelError):
    """What an architecture needs, and attention by segments or cumulative lengths does not have."""


def _not_plain(module: torch.nn.Module, lacks: Sequence[str]) -> UnsupportedAttentionError:
    return UnsupportedAttentionError(
        f"{type(module).__name__} needs {', '.join(lacks)}, which attention by segments does not have. Expected: "
        "plain causal attention. Set train.pad_mode: dynamic_pad, or model.attention: eager where that can do it."
    )


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionInterface.register(VARLEN, varlen_attention)
