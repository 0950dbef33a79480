"""Completions by vLLM (0.11 and later), which is an extra: imported only where it is asked for or found on a GPU.

Every sample has a seed of its own, so what vLLM draws depends on no neighbour; its numbers are others than those of
`sampling.py`, and in bfloat16 neither backend repeats the other to the token. Not tested against vLLM itself where
there is no GPU: the tests have an engine of three lines.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from codetune.errors import ProjectError
from codetune.model.decoding import GeneratedText, GenerationRequest, StopCriteria, stream_seed
from codetune.model.model_files import ADAPTER_CONFIG
from codetune.model.tensor_parallel import save_merged, tensor_parallel_size, weight_bytes
from codetune.project.sections import Generation, Model

# vLLM hands a list over when all of it is done; what is lost to a kill is one of these.
REQUESTS_AT_ONCE = 512


class CompletionEngine(Protocol):
    def generate(self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]]) -> list[CompletionOutput]:
        """One for each prompt, in their order; settings are keywords of vLLM's SamplingParams."""


class CompletionOutput(Protocol):
    token_ids: Sequence[int]
    finish_reason: str | None  # `length` where there was no more room


class VllmGenerator:
    """Implements `decoding.Decoder`."""

    def __init__(self, engine: CompletionEngine, endings: StopCriteria, settings: Generation) -> None:
        self._engine, self._endings, self._settings = engine, endings, settings

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Number and completion of each request, in their order."""
        for start in range(0, len(requests), REQUESTS_AT_ONCE):
            part = requests[start : start + REQUESTS_AT_ONCE]
            finished = self._engine.generate([request.prompt for request in part], [*map(self._sampling, part)])
            for number, (request, end) in enumerate(zip(part, finished, strict=True), start=start):
                written = self._endings.written(request, end.token_ids)
                yield (
                    number,
                    GeneratedText(written.text, written.tokens, written.truncated and end.finish_reason == "length"),
                )

    def _sampling(self, request: GenerationRequest) -> dict[str, Any]:
        settings = self._settings
        drawn = {"top_p": settings.top_p, "seed": stream_seed(request.stream)} if settings.temperature > 0 else {}
        return {
            "temperature": settings.temperature,
            "max_tokens": self._endings.room(request, settings.max_new_tokens),
            "stop": list(self._endings.stops(request)),
            "stop_token_ids": sorted(self._endings.tokens),
            **drawn,
        }


def is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def require_installed() -> None:
    if not is_installed():
        raise ProjectError(
            "generate.backend is vllm, and vllm is not installed here. Expected: the extra of that name. Install it: "
            "pip install 'codetune[vllm]', or set generate.backend: auto"
        )


def load_vllm(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: Model,
    end_of_turn: Sequence[str],
    settings: Generation,
) -> VllmGenerator:
    """The model in an engine of its own; adapters are merged into a copy that is gone when it is loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = directory
        if (directory / ADAPTER_CONFIG).is_file():
            save_merged(directory, model, Path(scratch))
            whole = Path(scratch)
        named = [AutoConfig.from_pretrained(whole, local_files_only=True)]
        if (whole / "generation_config.json").is_file():
            named.append(GenerationConfig.from_pretrained(whole, local_files_only=True))
        tokenizer.save_pretrained(Path(scratch) / "tokenizer")
        engine = _Vllm(whole, Path(scratch) / "tokenizer", model.dtype)
    return VllmGenerator(engine, StopCriteria(tokenizer, named, end_of_turn), settings)


class _Vllm:
    """The one place that knows vLLM's own classes."""

    def __init__(self, directory: Path, tokenizer: Path, dtype: str) -> None:
        import torch
        from vllm import LLM

        memory = torch.cuda.get_device_properties(0).total_memory
        self._engine = LLM(
            model=str(directory),
            tokenizer=str(tokenizer),
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size(
                weight_bytes(directory, dtype), memory, torch.cuda.device_count()
            ),
            load_format="safetensors",
            generation_config="vllm",  # nothing of the model's own: it may repeat less, or sample
            disable_log_stats=True,
        )

    def generate(self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]]) -> list[CompletionOutput]:
        from vllm import SamplingParams

        answers = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(**chosen) for chosen in settings],
            use_tqdm=False,
        )
        return [answer.outputs[0] for answer in answers]
