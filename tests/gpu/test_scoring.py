"""Scoring on a GPU: the kernels against float64 arithmetic, equal bytes, and the measured tokens per pass."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from codetune.data.tokens import Span
from codetune.model.attention import FLASH, SEGMENTED, VARLEN, AttentionSpec, packed_inputs, unsupported_reason
from codetune.model.likelihood import MAX_TOKENS_PER_PASS, CausalScorer, measured_tokens_per_pass, set_scoring_attention
from tests.model.builders import ARCHITECTURES, tiny_model
from tests.model.test_likelihood import VOCABULARY, random_spans, reference_nll
from tests.small_world import make_small_world, run_codetune

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(autouse=True)
def as_in_production() -> None:
    torch.use_deterministic_algorithms(False)


def on_gpu(model: PreTrainedModel, asked: str) -> PreTrainedModel:
    moved = copy.deepcopy(model).to("cuda:0", torch.bfloat16)
    set_scoring_attention(moved, asked)
    return moved


@pytest.mark.parametrize("asked", ["auto", "varlen", "flash", "sdpa"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_spans_keep_the_rank_of_float64_arithmetic(architecture: str, asked: str) -> None:
    model = tiny_model(architecture, VOCABULARY)
    moved = model.to("cuda:0", torch.bfloat16)
    if asked == "flash" and unsupported_reason("flash", AttentionSpec.of(moved, "bfloat16")):
        pytest.skip("flash-attn is not installed")
    model = tiny_model(architecture, VOCABULARY)
    spans = random_spans(200, 200, seed=1)
    found = CausalScorer(on_gpu(model, asked), 4096).nll(spans)
    assert spearmanr(reference_nll(model, spans), found).statistic > 0.99


def test_auto_is_a_fused_kernel() -> None:
    assert on_gpu(tiny_model("llama", VOCABULARY), "auto").config._attn_implementation in (VARLEN, FLASH)


def test_the_same_spans_give_the_same_bits_again() -> None:
    scorer = CausalScorer(on_gpu(tiny_model("llama", VOCABULARY), "auto"), 2048)
    spans = random_spans(100, 200, seed=2)
    assert scorer.nll(spans) == scorer.nll(spans)


def test_gradients_through_the_kernel_are_those_of_segments() -> None:
    samples = [torch.arange(3, 3 + length, device="cuda:0") for length in (11, 5, 1, 40)]
    gradients = []
    for attention in (VARLEN, SEGMENTED):
        model = copy.deepcopy(tiny_model("llama", VOCABULARY)).to("cuda:0", torch.bfloat16)
        model.set_attn_implementation(attention)
        model(**packed_inputs(samples), use_cache=False).logits.float().logsumexp(-1).sum().backward()
        gradients.append(torch.cat([weights.grad.float().flatten() for weights in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


def test_a_pass_of_the_measured_tokens_fits() -> None:
    model = on_gpu(tiny_model("llama", 32256, hidden=256), "auto")
    tokens = measured_tokens_per_pass(model, 2048)
    assert 2048 <= tokens <= MAX_TOKENS_PER_PASS
    dice = random.Random(0)
    span = Span(tuple(dice.randrange(32256) for _ in range(2048)), 1024)
    torch.cuda.reset_peak_memory_stats()
    assert None not in CausalScorer(model, tokens).nll([span] * (tokens // 2048))
    assert torch.cuda.max_memory_reserved() < torch.cuda.mem_get_info()[1]


def test_shards_and_one_process_give_the_same_bytes(tmp_path: Path) -> None:
    artefacts = []
    for name, shards in (("whole", [()]), ("parts", [("--shard", "0/2"), ("--shard", "1/2")])):
        make_small_world(tmp_path / name)
        for shard in shards:
            flags = ("--set", "model.dtype=bfloat16", "--set", "score.tokens_per_batch=512")
            done = run_codetune("score", *shard, *flags, cwd=tmp_path / name)
            assert done.returncode == 0, done.stderr
        artefacts.append((tmp_path / name / "runs/small/scores.jsonl").read_bytes())
    assert artefacts[0] == artefacts[1]
