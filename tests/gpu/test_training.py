"""Batches on a real GPU: what the CPU's tests show of pad modes holds for its kernels too, and memory is saved.

python -m pytest tests/gpu/test_training.py        # needs one CUDA device; skipped without"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codetune.model.attention import VARLEN, AttentionSpec, attention_implementation
from codetune.project.sections import Quantization
from codetune.training.loss import AnswerLoss, LossFunction, plain_losses
from tests.model.builders import ARCHITECTURES, tiny_model
from tests.training.samples import SAMPLES, by_hand, collated, gradient
from tests.training.tiny import base_model, metrics, project, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODES = ["max_length", "dynamic_pad", "paper_pack", "dynamic_pack"]


@pytest.fixture(autouse=True)
def _kernels_as_in_production() -> None:
    torch.use_deterministic_algorithms(False)  # flash attention's backward has no other kind


def to_gpu(value: object) -> object:
    if isinstance(value, dict):
        return {name: to_gpu(part) for name, part in value.items()}
    return value.cuda() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_gradients_are_close_to_those_of_each_sample_alone(architecture: str, mode: str) -> None:
    alone = tiny_model(architecture, 90).train()
    loss = by_hand(alone)
    expected = gradient(alone, loss)
    model = tiny_model(architecture, 90).cuda().train()
    flat = mode in ("paper_pack", "dynamic_pack")
    attention = attention_implementation("auto", flat, AttentionSpec.of(model, "bfloat16"))
    assert attention == (VARLEN if flat else "sdpa")
    model.set_attn_implementation(attention)
    losses, count = AnswerLoss(model, 3 * 90), sum(int(one.learned[1:].sum()) for one in SAMPLES)
    (step,) = collated(mode)
    with torch.autocast("cuda", torch.bfloat16):
        found = torch.stack([losses(model, to_gpu(batch)).sum() / count for batch in step["micro_batches"]]).sum()
    assert found.item() == pytest.approx(loss.item(), rel=1e-2)
    assert (gradient(model, found).cpu() - expected).norm() < 3e-2 * expected.norm()


def test_chunks_of_logits_take_a_fraction_of_the_memory() -> None:
    model = tiny_model("llama", 32256).cuda().train()
    tokens = 16384
    ids = torch.randint(0, 32256, (1, tokens), device="cuda")
    places = torch.arange(tokens // 2, tokens - 1, device="cuda")
    batch = {"inputs": {"input_ids": ids}, "positions": places, "targets": ids[0][places + 1]}

    def peak(losses: LossFunction) -> int:
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            losses(model, batch).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    plain = peak(plain_losses)
    assert peak(AnswerLoss(model, 1 << 25)) < plain / 4


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_whole_trainings_learn_the_same_packed_and_padded(tmp_path: Path, method: str) -> None:
    base = base_model(tmp_path / "base")
    losses = {}
    for mode in MODES:
        settings = project("bfloat16", pad_mode=mode, method=method, quantization=Quantization())
        summary = run(settings, base, tmp_path / mode)
        losses[mode] = [line["loss"] for line in metrics(tmp_path / mode)]
        assert summary.peak_memory_bytes
    for mode in MODES[1:]:
        assert losses[mode] == pytest.approx(losses["max_length"], rel=2e-2)


def test_compiled_layers_learn_what_the_others_do(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    losses = {}
    for compiles in ("never", "always"):
        settings = project("bfloat16", compile=compiles, gradient_checkpointing=True, logging_steps=1)
        run(settings, base, tmp_path / compiles)
        losses[compiles] = [line["loss"] for line in metrics(tmp_path / compiles)]
    assert losses["always"] == pytest.approx(losses["never"], rel=2e-2)
