"""Whether samples that stand end to end in one row are to the model what each is alone: tried on the model itself, with
the attention that it is going to compute with.

    row          before | one    | behind
    row          before | other  | behind    nothing may change but in the middle: else they see each other
    row          one    | before | behind    each is what it was: else its place in the row counts
    one sample, its positions given and not  the same: else the model counts them otherwise than from 0

All rows have the same shape, so what is isolated has the same bits, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from codetune.errors import ModelError, first_line
from codetune.model.attention import SEGMENTED, UnsupportedAttentionError, packed_inputs

LENGTH = 7
# Of a model's largest logit. In 16 bits a product's rounding may depend on the place in the row.
TOLERANCE, COARSE_TOLERANCE = 1e-4, 2e-2
ALTERNATIVES = {"auto": SEGMENTED, "sdpa": "sdpa", "eager": "eager"}  # what a project asks for -> what it may become
# How architectures fail that take no flat rows. Out of memory is a RuntimeError.
FAILURES = (ValueError, TypeError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class ShardedNetwork:
    """What runs a network of which each process has a part: all of them have to call it, with inputs on `device`."""

    module: torch.nn.Module
    device: str


def require_isolation(model: PreTrainedModel, shared: ShardedNetwork | None = None) -> None:
    """Raises ModelError where it is not so, and names an attention with which it is."""
    fault = _fault(model, shared)
    if not fault:
        return
    used = model.config._attn_implementation
    others = [name for name, other in ALTERNATIVES.items() if other != used and _works(model, shared, other)]
    model.set_attn_implementation(used)
    other = f", or model.attention: {others[0]}" if others else ""
    raise ModelError(f"{fault}. Expected: each sees itself alone. Set train.pad_mode: dynamic_pad{other}.")


def _works(model: PreTrainedModel, shared: ShardedNetwork | None, attention: str) -> bool:
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return not _fault(model, shared)


def _fault(model: PreTrainedModel, shared: ShardedNetwork | None) -> str:
    """What is wrong; "" where nothing is."""
    embeddings: torch.nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    device = shared.device if shared else embeddings.weight.device
    samples = [torch.arange(LENGTH, device=device) * step % embeddings.num_embeddings for step in (11, 3, 5, 7)]
    before, one, other, behind = samples
    single = packed_inputs([torch.cat([before, one, behind])])
    rows = [packed_inputs(row) for row in ([before, one, behind], [before, other, behind], [one, before, behind])]
    rows += [single, {name: value for name, value in single.items() if name != "position_ids"}]
    try:
        first, changed, moved, placed, unplaced = _logits(model, shared, rows)
    except UnsupportedAttentionError as why:
        return str(why).partition(". Expected")[0]
    except FAILURES as why:
        return f"{type(model).__name__} takes no packed samples ({first_line(why)})"
    coarse = COARSE_TOLERANCE if _in_half_precision(model, device) else TOLERANCE
    shown = f"{type(model).__name__} with attention {model.config._attn_implementation!r}"
    ends = torch.cat([first[:LENGTH], first[2 * LENGTH :]]), torch.cat([changed[:LENGTH], changed[2 * LENGTH :]])
    if not _are_close(*ends, TOLERANCE):
        return f"Packed samples see each other in {shown}"
    if not _are_close(first, torch.cat([moved[LENGTH : 2 * LENGTH], moved[:LENGTH], moved[2 * LENGTH :]]), coarse):
        return f"Packed samples depend on their place in the row in {shown}"
    if not _are_close(placed, unplaced, coarse):
        return f"{type(model).__name__} counts positions otherwise than from 0, as packed samples have them"
    return ""


def _logits(
    model: PreTrainedModel, shared: ShardedNetwork | None, rows: Sequence[dict[str, Any]]
) -> list[torch.Tensor]:
    """[T, V] of each row. What is not a number says nothing of attention: the loss will tell of it."""
    run, was_training = shared.module if shared else model, model.training
    run.train(False)
    for layer in run.modules():  # bitsandbytes would rearrange 4-bit weights for good, and lose their gradients
        weight = getattr(layer, "weight", None)
        layer.training = isinstance(weight, torch.Tensor) and not weight.is_floating_point()
    try:
        with torch.no_grad():
            return [run(**row, use_cache=False).logits[0].float().nan_to_num(0, 0, 0) for row in rows]
    finally:
        run.train(was_training)


def _are_close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance * float(one.abs().max()))


def _in_half_precision(model: PreTrainedModel, device: torch.device | str) -> bool:
    return model.dtype != torch.float32 or torch.is_autocast_enabled(torch.device(device).type)
