"""The decoder for each machine and each setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from codetune.errors import ProjectError
from codetune.model.batch_generator import BatchGenerator
from codetune.model.decoder_choice import Capabilities, load_decoder, wants_continuous, wants_vllm
from codetune.model.vllm_engine import is_installed
from codetune.project.sections import Generation, Model
from tests.model.builders import byte_tokenizer, tiny_model

CPU, GPU = Capabilities(False, None, False), Capabilities(True, "flash_attention_2", False)
BFLOAT16 = torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "dtype", "machine", "continuous"),
    [
        ({}, BFLOAT16, GPU, True),
        ({}, BFLOAT16, CPU, False),
        ({}, BFLOAT16, Capabilities(True, None, False), False),
        ({}, torch.float32, GPU, False),
        ({"temperature": 0.8}, BFLOAT16, GPU, False),
        ({"batch_size": 8}, BFLOAT16, GPU, False),
    ],
    ids=["gpu", "cpu", "no flash attention", "float32", "sampled", "batches asked for"],
)
def test_continuous_batching_needs_a_gpu_flash_attention_and_greedy_decoding(
    settings: dict[str, Any], dtype: torch.dtype, machine: Capabilities, continuous: bool
) -> None:
    assert wants_continuous(Generation(**settings), dtype, machine) == continuous


@pytest.mark.parametrize(
    ("backend", "machine", "vllm"),
    [
        ("auto", Capabilities(True, None, True), True),
        ("auto", Capabilities(False, None, True), False),
        ("auto", GPU, False),
        ("transformers", Capabilities(True, None, True), False),
        ("vllm", CPU, True),
    ],
)
def test_vllm_is_used_if_asked_for_or_installed_beside_a_gpu(backend: str, machine: Capabilities, vllm: bool) -> None:
    assert wants_vllm(Generation(backend=backend), machine) == vllm


@pytest.mark.skipif(is_installed(), reason="vllm is here")
def test_vllm_that_is_not_installed_names_its_extra(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"pip install 'codetune\[vllm\]'"):
        load_decoder(tmp_path, byte_tokenizer(bos=True), Model(), [], Generation(backend="vllm"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_cpu_decodes_batches(tmp_path: Path) -> None:
    tiny_model("llama", 320).save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, byte_tokenizer(bos=True), Model(dtype="float32"), [], Generation())
    assert isinstance(decoder, BatchGenerator)
