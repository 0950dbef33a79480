"""Packed rows: each sample attends to itself only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from codetune.errors import ModelError
from codetune.model import attention as attention_module
from codetune.model.attention import (
    FLASH,
    SEGMENTED,
    VARLEN,
    AttentionSpec,
    attention_implementation,
    fused_kernel,
    packed_inputs,
    require_no_chunked_attention,
    segmented_attention,
    unsupported_reason,
    varlen_attention,
)
from tests.model.builders import ARCHITECTURES, documented_varlen_attn, model_with, tiny_model

SAMPLES = [torch.arange(3, 14), torch.arange(20, 25), torch.tensor([7]), torch.arange(40, 60)]
BACKENDS = [SEGMENTED, VARLEN, "sdpa", "eager"]
pytestmark = pytest.mark.usefixtures("varlen_on_a_cpu")
GPU = AttentionSpec("cuda", (9, 0), "bfloat16", 128, plain=True)


def logits(model: PreTrainedModel, samples: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        flat = model(**packed_inputs(samples), use_cache=False).logits[0]
    return list(flat.split([len(sample) for sample in samples]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", BACKENDS)
def test_a_packed_sample_has_the_logits_that_it_has_alone(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention)
    for sample, packed in zip(SAMPLES, logits(model, SAMPLES), strict=True):
        with torch.no_grad():
            alone = tiny_model(architecture, 100)(sample[None], use_cache=False).logits[0]
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", BACKENDS)
def test_changing_a_sample_changes_no_other(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention)
    before = logits(model, SAMPLES)
    after = logits(model, [SAMPLES[0], SAMPLES[1] + 1, *SAMPLES[2:]])
    changed = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize("attention", BACKENDS)
def test_gradients_through_a_packed_row_are_those_of_the_samples_alone(attention: str) -> None:
    def gradient(model: PreTrainedModel, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        model.zero_grad()
        torch.stack(list(losses)).sum().backward()
        return torch.cat([weights.grad.flatten() for weights in model.parameters()])

    model = model_with("llama", attention)
    flat = model(**packed_inputs(SAMPLES), use_cache=False).logits[0].split([len(sample) for sample in SAMPLES])
    packed = gradient(model, [part.logsumexp(-1).sum() for part in flat])
    plain = tiny_model("llama", 100)
    alone = gradient(plain, [plain(row[None], use_cache=False).logits[0].logsumexp(-1).sum() for row in SAMPLES])
    assert (packed - alone).norm() <= 1e-5 * alone.norm()


def test_grouped_heads_are_repeated_for_a_torch_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(model_with("qwen2", VARLEN), SAMPLES)
    monkeypatch.setattr(attention_module, "_VARLEN_PARAMETERS", frozenset({"scale", "window_size"}))

    def without_groups(*args: object, scale: float | None, window_size: tuple[int, int]) -> torch.Tensor:
        return documented_varlen_attn(*args, scale=scale, window_size=window_size)  # type: ignore[arg-type]

    monkeypatch.setattr(attention_module, "varlen_attn", without_groups)
    for one, other in zip(expected, logits(model_with("qwen2", VARLEN), SAMPLES), strict=True):
        torch.testing.assert_close(one, other)


def test_the_kernel_takes_each_padded_row_as_one_sample() -> None:
    model, plain = model_with("llama", VARLEN), tiny_model("llama", 100)
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)


def test_cached_keys_are_refused() -> None:
    model = model_with("llama", VARLEN)
    with torch.no_grad(), pytest.raises(ModelError, match="use_cache"):
        model.generate(SAMPLES[0][None], max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("attention", [SEGMENTED, VARLEN])
def test_a_sliding_window_is_kept_within_a_sample(attention: str) -> None:
    model = tiny_model("starcoder2", 100)
    model.config.sliding_window = 4
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = model(SAMPLES[3][None], use_cache=False).logits[0]
        unlimited = tiny_model("starcoder2", 100)(SAMPLES[3][None], use_cache=False).logits[0]
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 4
    model.set_attn_implementation(attention)
    torch.testing.assert_close(logits(model, SAMPLES)[3], alone, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(alone, unlimited, atol=1e-3)


def test_rows_without_segments_are_refused() -> None:
    model = model_with("llama", SEGMENTED)
    with pytest.raises(ModelError, match="does not hand them on"):
        model(SAMPLES[0][None], use_cache=False)


def test_under_autocast_the_kernel_gets_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()

    def note(query: torch.Tensor, *args: object, **more: object) -> torch.Tensor:
        asked.add(query.dtype)
        return documented_varlen_attn(query, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(attention_module, "varlen_attn", note)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(model_with("llama", VARLEN), SAMPLES)
    assert asked == {torch.bfloat16}


def test_auto_is_a_fused_kernel_if_one_works_and_segments_otherwise() -> None:
    cpu = replace(GPU, device="cpu", capability=(0, 0))
    assert [attention_implementation("auto", packed, spec) for packed in (True, False) for spec in (GPU, cpu)] == [
        VARLEN,
        SEGMENTED,
        "sdpa",
        "sdpa",
    ]
    assert [fused_kernel(spec) for spec in (GPU, cpu, replace(GPU, dtype="float32"))] == [VARLEN, None, None]
    assert attention_implementation("eager", True, GPU) == "eager"
    assert attention_implementation("varlen", False, GPU) == VARLEN


def test_flash_attn_is_used_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: False)
    assert unsupported_reason("flash", GPU).startswith("flash-attn is not installed")
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    assert unsupported_reason("flash", GPU) == ""
    assert attention_implementation("flash", True, GPU) == FLASH
    # It caps scores, which torch's kernel does not.
    assert fused_kernel(replace(GPU, plain=False)) == FLASH


@pytest.mark.parametrize("asked", ["flash", "varlen"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "needs an NVIDIA GPU, the model is on cpu"),
        ({"capability": (7, 5)}, "compute capability 8.0"),
        ({"dtype": "float32"}, "model.dtype is float32"),
        ({"head_dimension": 12}, "the model has 12"),
        ({"head_dimension": 512}, "the model has 512"),
    ],
)
def test_a_kernel_that_cannot_work_is_refused_with_its_reason(asked: str, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=rf"model.attention is {asked}.*{reason}.*Set model.attention: auto"):
        attention_implementation(asked, True, replace(GPU, **change))


def test_a_torch_without_scale_and_window_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsupported_reason("varlen", GPU) == ""
    monkeypatch.setattr(attention_module, "_VARLEN_PARAMETERS", frozenset({"is_causal"}))
    assert "too old" in unsupported_reason("varlen", GPU)


def test_an_attention_spec_is_read_from_the_network() -> None:
    assert AttentionSpec.of(tiny_model("gemma", 100), "float32") == AttentionSpec(
        "cpu", (0, 0), "float32", 16, plain=True
    )


def test_chunked_attention_needs_samples_that_fit_a_chunk() -> None:
    model = tiny_model("llama", 100)
    require_no_chunked_attention(model, 4096)
    model.config.attention_chunk_size = 64
    require_no_chunked_attention(model, 64)
    with pytest.raises(ModelError, match=r"chunks of 64 tokens, and train\.max_length is 65.*train\.max_length: 64"):
        require_no_chunked_attention(model, 65)


@pytest.mark.parametrize("attention", [segmented_attention, varlen_attention])
def test_an_attention_mask_of_the_architecture_is_refused(attention: Any) -> None:
    states = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ModelError, match="needs attention_mask"):
        attention(torch.nn.Module(), states, states, states, torch.zeros(1, 1, 3, 3), segments=(3,))


def test_the_result_of_segmented_attention_is_contiguous() -> None:
    states = torch.randn(1, 2, 5, 8)
    attended, _ = segmented_attention(torch.nn.Module(), states, states, states, None, segments=(3, 2))
    assert attended.shape == (1, 5, 2, 8)
    assert attended.is_contiguous()
