"""Attention over packed rows: samples concatenated into one row, each of which attends to itself only.

    tokens      a a a b b       the attention of sample a covers a,              a .
    positions   0 1 2 0 1       that of b covers b, both causally;               a a
    segments    (3, 2)          positions restart with each sample               a a a
    cumulative  0 3 5           longest 3                                              b
                                                                                       b b
`packed_inputs` makes the inputs for any implementation; all have a forward and a backward pass. On a GPU in half
precision `VARLEN` (torch's variable-length flash attention) or `FLASH` (flash-attn, if it is installed) computes a
packed row in one kernel; `SEGMENTED` is one exact product per segment, on any device. `packing_check.py` tests whether
samples are isolated in a given network.

Axes: B rows (1 if packed), H query heads, K key-value heads, T tokens, D head dimension, N samples."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
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
FLASH = "flash_attention_2"  # the name in transformers
KERNELS = {"varlen": VARLEN, "flash": FLASH}  # model.attention -> the implementation to set
ModelInputs = dict[str, Any]  # keyword arguments of a network
_VARLEN_PARAMETERS = frozenset(inspect.signature(varlen_attn).parameters)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The requirements on an attention kernel: the device, the dtype and the attention of a network."""

    device: str  # cuda, cpu, ...
    capability: tuple[int, int]  # compute capability of an NVIDIA GPU, (0, 0) of other devices
    dtype: str  # of the computation (under autocast not that of the weights): float32, bfloat16 or float16
    head_dimension: int  # 0 for a network without attention
    plain: bool  # attention scores have neither softcapping nor dropout

    @classmethod
    def of(cls, network: PreTrainedModel, dtype: str, device: str | None = None) -> AttentionSpec:
        """`device` is where the network is going to run, if it is not there yet."""
        config, runs_on = network.config.get_text_config(), torch.device(device or network.device)
        explicit, heads = getattr(config, "head_dim", None), getattr(config, "num_attention_heads", None)
        return cls(
            runs_on.type,
            torch.cuda.get_device_capability(runs_on) if runs_on.type == "cuda" else (0, 0),
            dtype,
            explicit or (config.hidden_size // heads if heads else 0),
            not (getattr(config, "attn_logit_softcapping", None) or getattr(config, "attention_dropout", 0)),
        )


def attention_implementation(asked: str, packed: bool, spec: AttentionSpec, *, compiled: bool = False) -> str:
    """The implementation to set for `model.attention`, for packed or padded rows. For packed rows `auto` is a fused
    kernel if one works, otherwise `SEGMENTED`; for padded rows it is sdpa. `sdpa` and `eager` isolate packed samples
    too, through a dense mask that transformers builds from the positions: where layers are compiled, `auto` is `VARLEN`
    or sdpa, because `SEGMENTED` would be a graph for each number of samples. Raises ModelError for a kernel that cannot
    work."""
    if asked in KERNELS:
        require_kernel(asked, spec)
        return KERNELS[asked]
    if asked != "auto":
        return asked
    if packed and compiled:
        return "sdpa" if unsupported_reason("varlen", spec) else VARLEN
    return (fused_kernel(spec) or SEGMENTED) if packed else "sdpa"


def set_default_attention(network: PreTrainedModel) -> None:
    """Sets sdpa, or eager for an architecture without sdpa."""
    try:
        network.set_attn_implementation("sdpa")
    except ValueError:
        network.set_attn_implementation("eager")


def require_no_chunked_attention(network: PreTrainedModel, max_length: int) -> None:
    """Raises ModelError for chunked attention (Llama 4) with samples longer than a chunk. In packed rows chunks would
    be counted from the start of the row, and kernels have none."""
    chunk = getattr(network.config.get_text_config(), "attention_chunk_size", None)
    if chunk is not None and chunk < max_length:
        raise ModelError(
            f"{type(network).__name__} attends in chunks of {chunk} tokens, and train.max_length is {max_length}: "
            "only padded rows and transformers' own attention cut samples where the model does. Expected: those, or "
            f"samples that fit a chunk. Set train.pad_mode: dynamic_pad and model.attention: auto, or "
            f"train.max_length: {chunk}."
        )


def fused_kernel(spec: AttentionSpec) -> str | None:
    """The implementation that computes a packed row in one kernel; None if none works."""
    return next((KERNELS[asked] for asked in KERNELS if not unsupported_reason(asked, spec)), None)


def require_kernel(asked: str, spec: AttentionSpec) -> None:
    """Raises ModelError with the reason why the kernel cannot work."""
    if reason := unsupported_reason(asked, spec):
        raise ModelError(
            f"model.attention is {asked}, which cannot work here: {reason}. Expected: what flash attention needs. Set "
            "model.attention: auto, which takes an attention that works."
        )


def unsupported_reason(asked: str, spec: AttentionSpec) -> str:
    """Why the kernel cannot work; "" if it can."""
    if spec.device != "cuda":
        return f"it needs an NVIDIA GPU, the model is on {spec.device}"
    if spec.capability < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    if spec.dtype not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, model.dtype is {spec.dtype}"
    if not spec.head_dimension or spec.head_dimension % 8 or spec.head_dimension > 256:
        return f"it needs a head dimension that is a multiple of 8 up to 256, the model has {spec.head_dimension}"
    if asked == "flash":
        return "" if is_flash_attn_2_available() else "flash-attn is not installed (pip install 'codetune[flash]')"
    if not spec.plain:
        return "the model caps its attention scores or drops some, which torch's variable-length attention does not"
    # Before torch 2.11 it had neither a scale nor a window.
    return "" if {"scale", "window_size"} <= _VARLEN_PARAMETERS else f"torch {torch.__version__} is too old for it"


def packed_inputs(samples: Sequence[torch.Tensor]) -> ModelInputs:
    """The inputs of a network for the token ids [T_n] of N samples in one row. Positions restart with each sample.
    `segments` is for `SEGMENTED`, the cumulative lengths (named as in transformers) for the kernels; other
    implementations use the positions."""
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
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of a packed row by torch's kernel
    (https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html): query [B, H, T, D], key and value [B, K, T, D] ->
    [B, T, H, D]. Without cumulative lengths each row is one sample, with padding on the right at most. Raises
    UnsupportedAttentionError for arguments that the kernel would ignore."""
    rows, _, length, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
        max_length_q = length
    _require_supported(
        module, (query, key), others | {"dropout": dropout or None, "attention_mask": attention_mask}, cu_seq_lens_q
    )
    dtype = _kernel_dtype(query)
    q, k, v = (states.transpose(1, 2).flatten(0, 1).to(dtype) for states in (query, key, value))  # [B * T, H or K, D]
    grouped = q.shape[1] != k.shape[1]
    options: dict[str, Any] = {}  # not dict[str, Any](), which torch.compile does not read
    if grouped and "enable_gqa" in _VARLEN_PARAMETERS:
        options = {"enable_gqa": True}
    elif grouped:  # torch 2.11
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    # A window of W tokens in transformers is the token itself and W - 1 before it.
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    cumulative = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    attended = varlen_attn(q, k, v, *cumulative, scale=scaling, window_size=window, **options)
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
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of one packed row by a product per sample: query [1, H, T, D], key and value
    [1, K, T, D] -> [1, T, H, D]. `segments` are the lengths of the samples and add up to T. Raises
    UnsupportedAttentionError without them, and for arguments that would be ignored."""
    if segments is None:
        raise _unsupported(module, ["segments (the model does not hand them on)"])
    # An attention mask here is the architecture's own, such as a learned bias.
    _require_supported(
        module, (query, key), others | {"attention_mask": attention_mask}, torch.tensor([0, sum(segments)])
    )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # [B, H, T, D]
    # split, not slices: its backward is one concatenation, that of n slices n additions over the whole row.
    parts = zip(*(torch.split(states, list(segments), dim=2) for states in (query, key, value)), strict=True)
    attended = []
    for q, k, v in parts:
        mask = _window_mask(q, sliding_window)
        attended.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
            )
        )
    return torch.cat([part.transpose(1, 2) for part in attended], dim=1), None  # [B, T, H, D], contiguous


def _window_mask(query: torch.Tensor, sliding_window: int | None) -> torch.Tensor | None:
    """[T, T], True where a token attends; None if plain causal attention is the same."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
    return (distance >= 0) & (distance < sliding_window)


def _kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """The dtype for the kernel: under autocast that of autocast, because rotary embeddings return float32, which no GPU
    kernel accepts."""
    device = query.device.type
    if query.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return query.dtype


def _require_supported(
    module: torch.nn.Module,
    states: tuple[torch.Tensor, torch.Tensor],
    others: Mapping[str, object],
    cumulative: torch.Tensor,
) -> None:
    """Raises UnsupportedAttentionError for anything that would be ignored and make the result wrong."""
    (rows, _, length, _), keys = states[0].shape, states[1].shape[2]
    ignored = ("softcap", "s_aux", "position_bias", "dropout", "attention_mask")
    needs = [name for name in ignored if others.get(name) is not None]
    if keys != length:
        needs.append("keys of earlier calls (use_cache)")
    # On a GPU reading the sum would synchronize, in a compiled layer it would cut the graph.
    is_readable = cumulative.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_readable and int(cumulative[-1]) != rows * length:
        needs.append(f"rows of the shape {(rows, length)}")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        needs.append("attention to later tokens")
    if needs:
        raise _unsupported(module, needs)


class UnsupportedAttentionError(ModelError):
    """An architecture needs a feature of attention that attention over packed rows does not have."""


def _unsupported(module: torch.nn.Module, needs: Sequence[str]) -> UnsupportedAttentionError:
    return UnsupportedAttentionError(
        f"{type(module).__name__} needs {', '.join(needs)}, which attention by segments does not have. Expected: "
        "plain causal attention. Set train.pad_mode: dynamic_pad, or model.attention: eager where that can do it."
    )


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionInterface.register(VARLEN, varlen_attention)
