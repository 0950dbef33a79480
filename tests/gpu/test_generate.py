"""Generation on a GPU: pytest tests/gpu -m gpu. Needs one CUDA device; a part of it flash attention or vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codetune.launch.dispatch import Job, WorkerContext
from codetune.model.batch_generator import BatchGenerator
from codetune.model.continuous_batching import ContinuousGenerator, flash_attention
from codetune.model.decoder_choice import load_decoder
from codetune.model.decoding import GeneratedText, GenerationRequest
from codetune.model.vllm_engine import is_installed
from codetune.project.sections import Generation, Model
from codetune.records import ALONE
from codetune.stages.benchmarks import open_benchmark
from codetune.stages.generate import WorkList, complete, completed_rows
from codetune.stages.model_ref import model_ref
from tests.model.builders import byte_tokenizer, tiny_model
from tests.small_world import context_of, make_small_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # libraries that exist on a GPU only warn as they please
]
TOKENIZER = byte_tokenizer(bos=True)


@pytest.fixture(autouse=True)
def _fast_kernels() -> None:
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model("llama", len(TOKENIZER), hidden=256).save_pretrained(tmp_path)
    return tmp_path


def requests(count: int) -> list[GenerationRequest]:
    drawn = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 200, (count,), generator=drawn).tolist()
    return [
        GenerationRequest(
            tuple(torch.randint(3, 300, (length,), generator=drawn).tolist()), ("ab", "e\n"), f"42/{number}/0"
        )
        for number, length in enumerate(lengths)
    ]


def written(saved: Path, dtype: Any, backend: Any = "transformers", **settings: Any) -> dict[int, GeneratedText]:
    chosen = Generation(max_new_tokens=64, backend=backend, **settings)
    return dict(load_decoder(saved, TOKENIZER, Model(dtype=dtype), [], chosen).complete(requests(60)))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}], ids=["greedy", "sampled"])
def test_the_batch_size_changes_no_completion_in_float32(saved: Path, sampling: dict[str, Any]) -> None:
    together = written(saved, "float32", batch_size=60, **sampling)
    assert together == written(saved, "float32", batch_size=7, **sampling)
    assert together == written(saved, "float32", **sampling)


def test_a_full_gpu_halves_the_batch(saved: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.3 * 2**30 / total)
    try:
        assert len(written(saved, "float32", batch_size=60)) == 60
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_gpus_that_hold_a_model_together_write_what_one_does(tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 6)
    settings = ["generate.max_new_tokens=40", "launch.processes=2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.together", project, "2", tmp_path / "shared", *settings, "--", "base"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    context = context_of(project, generate__max_new_tokens=40)
    bench = open_benchmark(context, "tasks.jsonl")
    missing = [(problem.task_id, 0) for problem in bench.problems]
    alone = WorkList(model_ref(context, "base"), bench.file, missing, tmp_path / "alone")
    complete(Job("generate", context.project, alone.document()), WorkerContext(ALONE, None, lambda progress: None))
    assert completed_rows(tmp_path / "shared" / "base") == completed_rows(tmp_path / "alone")


@pytest.mark.skipif(flash_attention() is None, reason="no flash attention")
def test_continuous_batching_is_taken_and_agrees_with_batches_for_the_most_part(saved: Path) -> None:
    decoder = load_decoder(saved, TOKENIZER, Model(dtype="bfloat16"), [], Generation(backend="transformers"))
    assert isinstance(decoder, ContinuousGenerator)
    paged = written(saved, "bfloat16")
    assert isinstance(
        load_decoder(saved, TOKENIZER, Model(dtype="bfloat16"), [], Generation(backend="transformers", batch_size=8)),
        BatchGenerator,
    )
    batches = written(saved, "bfloat16", batch_size=8)
    # Random weights have near ties, which bfloat16 decides as it likes: the beginnings must be the same.
    same = sum(paged[number].text[:8] == batches[number].text[:8] for number in batches)
    assert same >= 0.8 * len(batches)


@pytest.mark.skipif(not is_installed(), reason="no vllm")
def test_vllm_ends_its_completions_where_batches_do(saved: Path) -> None:
    ours, theirs = written(saved, "float32", batch_size=8), written(saved, "float32", backend="vllm")
    assert sum(ours[number] == theirs[number] for number in ours) >= 0.8 * len(ours)
