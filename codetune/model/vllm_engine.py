"""Completions by vLLM (0.21 and later), an optional extra: imported only if it is asked for, or found beside a GPU.

Each sample has its own seed, so what vLLM samples does not depend on other requests. Its random numbers differ from
those of `decoding.py`, and in bfloat16 no backend repeats another to the token. Tests without a GPU use a fake engine,
not vLLM itself."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from codetune.errors import ProjectError
from codetune.model.decoding import GeneratedText, GenerationRequest, StopCriteria, not_finite_logits, stream_seed
from codetune.model.file_check import ADAPTER_CONFIG
from codetune.model.load import load_configuration, load_generation_config
from codetune.model.pretrained import start_vllm
from codetune.model.tensor_parallel import save_merged, tensor_parallel_size, weight_bytes
from codetune.project.sections import Generation, Model

# vLLM returns a list when all of it is finished; a killed run loses at most one list.
REQUESTS_AT_ONCE = 512

SamplingSettings = Mapping[str, object]  # keywords of vLLM's SamplingParams


class TokenLogprob(Protocol):
    """The part that is used of vLLM's Logprob."""

    logprob: float


class CompletionOutput(Protocol):
    """The part that is used of vLLM's class of that name."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, TokenLogprob]]  # of each of these tokens; NaN if the model's logits are
    finish_reason: str | None  # `length` at the token limit


class CompletionEngine(Protocol):
    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[SamplingSettings]
    ) -> Sequence[CompletionOutput]:
        """One output for each prompt, in their order."""


class VllmGenerator:
    """Implements `decoding.Decoder`."""

    def __init__(self, engine: CompletionEngine, criteria: StopCriteria, settings: Generation, dtype: str) -> None:
        self._engine, self._criteria, self._settings, self._dtype = engine, criteria, settings, dtype

    def refusal(self, request: GenerationRequest) -> str:
        """The reason why the model cannot complete the prompt; "" if it can."""
        return self._criteria.refusal(request)

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Index and completion of each request, in their order. Raises CodetuneError if logits are not finite."""
        for start in range(0, len(requests), REQUESTS_AT_ONCE):
            part = requests[start : start + REQUESTS_AT_ONCE]
            outputs = self._engine.generate([request.prompt for request in part], [*map(self._sampling, part)])
            for index, (request, output) in enumerate(zip(part, outputs, strict=True), start=start):
                self._require_finite(request, output)
                made = self._criteria.generated_text(request, output.token_ids)
                truncated = made.truncated and output.finish_reason == "length"
                yield index, GeneratedText(made.text, made.tokens, truncated)

    def _require_finite(self, request: GenerationRequest, output: CompletionOutput) -> None:
        for step, (token, logprobs) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
            if not math.isfinite(logprobs[token].logprob):
                raise not_finite_logits(request, step, self._dtype)

    def _sampling(self, request: GenerationRequest) -> SamplingSettings:
        settings = self._settings
        drawn = {"top_p": settings.top_p, "seed": stream_seed(request.stream)} if settings.temperature > 0 else {}
        return {
            "temperature": settings.temperature,
            "max_tokens": self._criteria.token_limit(request, settings.max_new_tokens),
            "stop": list(self._criteria.stop_strings(request)),
            "stop_token_ids": sorted(self._criteria.tokens),
            "logprobs": 0,  # of the chosen tokens alone
            **drawn,
        }


def is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def require_installed() -> None:
    """Raises ProjectError if vLLM is not installed."""
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
    """The model in a new engine. Adapters are merged into a temporary copy, which is deleted when it is loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = directory
        if (directory / ADAPTER_CONFIG).is_file():
            save_merged(directory, model, Path(scratch))
            whole = Path(scratch)
        configurations = [load_configuration(whole), load_generation_config(whole)]
        tokenizer.save_pretrained(Path(scratch) / "tokenizer")
        engine = _VllmEngine(whole, Path(scratch) / "tokenizer", model.dtype)
    return VllmGenerator(engine, StopCriteria(tokenizer, configurations, end_of_turn), settings, model.dtype)


class _VllmEngine:
    """The only code that uses vLLM's own classes."""

    def __init__(self, directory: Path, tokenizer: Path, dtype: str) -> None:
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory
        gpus = tensor_parallel_size(weight_bytes(directory, dtype), memory, torch.cuda.device_count())
        self._engine = start_vllm(
            directory,
            tokenizer=str(tokenizer),
            dtype=dtype,
            tensor_parallel_size=gpus,
            generation_config="vllm",  # not the model's own, which may penalize repetition, or sample
            disable_log_stats=True,
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[SamplingSettings]
    ) -> Sequence[CompletionOutput]:
        from vllm import SamplingParams

        answers = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [SamplingParams(**chosen) for chosen in settings],
            use_tqdm=False,
        )
        return [answer.outputs[0] for answer in answers]
