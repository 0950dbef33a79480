"""Tests on a network itself, with the attention that it is going to use, whether packed samples are isolated.

    row          before | one    | behind
    row          before | other  | behind    only the middle may change; otherwise samples attend to each other
    row          one    | before | behind    each sample keeps its logits; otherwise its offset in the row matters
    one sample, with positions and without   the same logits; otherwise the network does not count positions from 0

All rows have the same shape, so isolated samples have the same bits, or nearly. Axes: T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from codetune.errors import ModelError, first_line
from codetune.model.attention import SEGMENTED, ModelInputs, UnsupportedAttentionError, packed_inputs
from codetune.model.plain_layers import evaluation_mode, input_embeddings

LENGTH = 7
# Parts of the largest logit. In 16 bits the rounding of a product may depend on the offset in the row.
TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-4, 2e-2
ALTERNATIVES = {"auto": SEGMENTED, "sdpa": "sdpa", "eager": "eager"}  # model.attention -> an implementation to advise
# Errors of architectures that take no packed rows. Out of memory is a RuntimeError.
UNSUITED = (ValueError, TypeError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class ShardedNetwork:
    """The module that wraps a network whose weights are sharded over processes (FSDP, ZeRO). All processes have to call
    it together, with inputs on `device`."""

    module: torch.nn.Module
    device: str


def require_isolation(network: PreTrainedModel, sharded: ShardedNetwork | None = None) -> None:
    """Raises ModelError if packed samples are not isolated in the network. The message names an attention with which
    they are, if there is one. A sharded network runs through its wrapper."""
    fault = _fault(network, sharded)
    if not fault:
        return
    used = network.config._attn_implementation
    others = [name for name, other in ALTERNATIVES.items() if other != used and _isolates(network, sharded, other)]
    network.set_attn_implementation(used)
    advice = f", or model.attention: {others[0]}" if others else ""
    raise ModelError(f"{fault}. Expected: isolated samples. Set train.pad_mode: dynamic_pad{advice}.")


def _isolates(network: PreTrainedModel, sharded: ShardedNetwork | None, attention: str) -> bool:
    try:
        network.set_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return not _fault(network, sharded)


def _fault(network: PreTrainedModel, sharded: ShardedNetwork | None) -> str:
    """A sentence that says what breaks the isolation; "" if nothing does."""
    embeddings = input_embeddings(network)
    device = sharded.device if sharded else embeddings.weight.device
    samples = [torch.arange(LENGTH, device=device) * step % embeddings.num_embeddings for step in (11, 3, 5, 7)]
    before, one, other, behind = samples
    single = packed_inputs([torch.cat([before, one, behind])])
    rows = [packed_inputs(row) for row in ([before, one, behind], [before, other, behind], [one, before, behind])]
    rows += [single, {name: value for name, value in single.items() if name != "position_ids"}]
    try:
        first, changed, moved, positioned, unpositioned = _logits(network, sharded, rows)
    except UnsupportedAttentionError as error:
        return str(error).partition(". Expected")[0]
    except UNSUITED as error:
        return f"{type(network).__name__} takes no packed samples ({first_line(error)})"
    tolerance = HALF_PRECISION_TOLERANCE if _in_half_precision(network, device) else TOLERANCE
    shown = f"{type(network).__name__} with attention {network.config._attn_implementation!r}"
    ends = torch.cat([first[:LENGTH], first[2 * LENGTH :]]), torch.cat([changed[:LENGTH], changed[2 * LENGTH :]])
    if not _are_close(*ends, TOLERANCE):
        return f"Packed samples see each other in {shown}"
    if not _are_close(first, torch.cat([moved[LENGTH : 2 * LENGTH], moved[:LENGTH], moved[2 * LENGTH :]]), tolerance):
        return f"Packed samples depend on their offset in the row in {shown}"
    if not _are_close(positioned, unpositioned, tolerance):
        return f"{type(network).__name__} counts positions otherwise than from 0, as packed samples have them"
    return ""


def _logits(
    network: PreTrainedModel, sharded: ShardedNetwork | None, rows: Sequence[ModelInputs]
) -> list[torch.Tensor]:
    """[T, V] of each row. NaN becomes 0: it says nothing about attention, and the loss will show it."""
    run = sharded.module if sharded else network
    with evaluation_mode(run), torch.no_grad():
        return [run(**row, use_cache=False).logits[0].float().nan_to_num(0, 0, 0) for row in rows]


def _are_close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance * float(one.abs().max()))


def _in_half_precision(network: PreTrainedModel, device: torch.device | str) -> bool:
    return network.dtype != torch.float32 or torch.is_autocast_enabled(torch.device(device).type)
