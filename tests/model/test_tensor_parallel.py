"""When processes split one network, when they cannot, and the shards that they get."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from codetune.errors import CodetuneError, ModelError
from codetune.launch.process_group import ProcessGroup, file_store, join_process_group
from codetune.model.adapters import add_adapters
from codetune.model.batch_generator import BatchGenerator
from codetune.model.decoding import GenerationRequest
from codetune.model.load import load_model
from codetune.model.tensor_parallel import (
    ProcessCounts,
    VisibleGpus,
    kv_cache_ranks,
    load_tensor_parallel,
    needs_tensor_parallel,
    weight_bytes,
)
from codetune.project.sections import Generation, LoraSettings, Model
from codetune.records import Rank
from tests.model.builders import byte_tokenizer, tiny_model

IDS = torch.tensor([[5, 6, 7, 8]])
TWO = ProcessCounts(2, 2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four heads, two of them for keys."""
    directory = tmp_path_factory.mktemp("llama")
    tiny_model("llama", 320).save_pretrained(directory)
    return directory


def gpus(directory: Path, share: float, count: int = 2) -> VisibleGpus:
    """Of a memory that the model's weights in float32 are such a share of."""
    return VisibleGpus(count, int(weight_bytes(directory, "float32") / share))


def test_the_size_of_weights_is_that_of_their_dtype(llama: Path) -> None:
    stored = (llama / "model.safetensors").stat().st_size
    whole = weight_bytes(llama, "float32")
    assert 0 <= stored - whole < 10_000  # the header
    assert weight_bytes(llama, "bfloat16") * 2 == whole
    assert weight_bytes(llama, "auto") == stored


def test_the_size_of_adapters_is_that_of_their_base_model(llama: Path, tmp_path: Path) -> None:
    add_adapters(load_model(llama, Model(dtype="float32"), "cpu"), "lora", LoraSettings(), 1).save_pretrained(tmp_path)
    assert weight_bytes(tmp_path, "float32") == weight_bytes(llama, "float32")
    assert needs_tensor_parallel(tmp_path, "float32", TWO, gpus(llama, 0.8))


@pytest.mark.parametrize(("share", "shared"), [(0.69, False), (0.71, True), (1.5, True)])
def test_a_model_that_fills_a_gpu_is_split(llama: Path, share: float, shared: bool) -> None:
    assert needs_tensor_parallel(llama, "float32", TWO, gpus(llama, share)) is shared
    assert not needs_tensor_parallel(llama, "bfloat16", TWO, gpus(llama, share / 1.5))
    assert not needs_tensor_parallel(llama, "float32", TWO, None)  # the CPU's memory is not divided


@pytest.mark.parametrize(
    ("processes", "share", "count", "expected"),
    [
        (ProcessCounts(1, 1), 1.1, 1, "there is one process. Set launch.processes: auto on a machine with more GPUs"),
        (ProcessCounts(2, 2), 1.1, 1, "2 processes see 1 of them"),
        (
            ProcessCounts(3, 3),
            1.1,
            3,
            "3 processes do not divide its 4 attention heads and 2 of keys. Set launch.processes: 2",
        ),
        (ProcessCounts(3, 3), 2.1, 3, "do not divide its 4 attention heads and 2 of keys. Install the extra vllm"),
        (ProcessCounts(2, 2), 2.1, 2, "2 are too few. Take more of them"),
    ],
)
def test_a_model_that_cannot_be_split_is_an_error_with_a_remedy(
    llama: Path, processes: ProcessCounts, share: float, count: int, expected: str
) -> None:
    with pytest.raises(ModelError) as caught:
        needs_tensor_parallel(llama, "float32", processes, gpus(llama, share, count))
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"The weights of {llama} take 0.")
    assert str(caught.value).endswith("Or use the CPU: set CUDA_VISIBLE_DEVICES to nothing")


def test_an_architecture_without_a_plan_needs_vllm(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=320)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot divide the layers of a gpt2. Install the extra vllm"):
        needs_tensor_parallel(tmp_path, "float32", TWO, gpus(tmp_path, 1.1))


def test_a_model_that_a_gpu_just_run_ranks_is_not_split_where_it_cannot_be(llama: Path) -> None:
    assert not needs_tensor_parallel(llama, "float32", ProcessCounts(1, 1), gpus(llama, 0.9, 1))
    assert not needs_tensor_parallel(llama, "float32", ProcessCounts(3, 3), gpus(llama, 0.9, 3))


def test_cached_heads_are_split_if_the_plan_splits_keys() -> None:
    assert kv_cache_ranks(tiny_model("llama", 100).config, 4) == 4
    assert kv_cache_ranks(GPT2Config(), 4) == 1


def test_each_process_has_a_shard_and_all_compute_the_logits_of_the_whole(llama: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # one import of torch for both processes
    workers = [context.Process(target=_run_rank, args=(rank, llama, tmp_path)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0, 0]
    with torch.no_grad():
        whole = load_model(llama, Model(dtype="float32"), "cpu")
        logits = whole(IDS).logits
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(found["logits"], logits, atol=1e-5)
        assert found["numbers"] < 0.8 * sum(weights.numel() for weights in whole.parameters())
        assert found["of_first"] == [0, 1, 2]
        assert found["least"] == 7


def _run_rank(rank: int, directory: Path, out: Path) -> None:
    """Saves the logits and the size of one rank's shard, and what the group tells it."""
    torch.set_num_threads(1)
    with (
        join_process_group(Rank(rank, 2, rank, 2), lambda: file_store(out / "meeting", 2)) as both,
        torch.inference_mode(),
    ):
        part = load_tensor_parallel(directory, Model(dtype="float32"), both, out)
        numbers = sum(getattr(weights, "to_local", lambda w=weights: w)().numel() for weights in part.parameters())
        found: dict[str, Any] = {"logits": part(IDS).logits, "numbers": numbers, "least": both.min(7 + rank)}
        found["of_first"] = both.broadcast(torch.arange(3) + 10 * rank).tolist()
    torch.save(found, out / f"{rank}.pt")


def test_a_full_gpu_among_several_is_an_error() -> None:
    class Full(torch.nn.Module):
        config, generation_config = tiny_model("llama", 100).config, None
        device = torch.device("cpu")

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return torch.nn.Embedding(100, 2)

        def forward(self, past_key_values: Any = None, **_: Any) -> None:
            raise torch.OutOfMemoryError("full")

    full: Any = Full()
    generator = BatchGenerator(full, byte_tokenizer(bos=True), [], Generation(), ProcessGroup(Rank(0, 2, 0, 2)))
    with pytest.raises(CodetuneError, match=r"2 prompts over 2 GPUs.* set generate.batch_size to a smaller number"):
        list(generator.complete([GenerationRequest((3,), (), "a"), GenerationRequest((4,), (), "b")]))
