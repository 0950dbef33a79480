"""Greedy completions by the continuous batching of transformers (5.17 to 5.23): requests join the running batch as
others leave it, over a paged key-value cache. For GPUs with flash attention: without it every step masks the keys of
all requests against each other, and on a CPU it is several times slower than `batch_generator.py`.

Drives the manager itself instead of `generate_batch`, which has no stop strings, returns nothing before the end, and
turns errors into missing results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.continuous_batching.utils import WorkloadHints
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from codetune.errors import CodetuneError
from codetune.model.decoding import (
    STOP_CHECK_TOKENS,
    GeneratedText,
    GenerationRequest,
    StopCriteria,
    not_finite_logits,
)
from codetune.project.sections import Generation

RESULT_TIMEOUT_SECONDS = 1.0


def flash_attention() -> str | None:
    """The implementation of flash attention that is installed; None without one."""
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


class ContinuousGenerator:
    """Implements `decoding.Decoder`. `limits` bound the cache (num_blocks, max_batch_tokens); without them it takes the
    free memory of the GPU."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_of_turn: Sequence[str],
        settings: Generation,
        limits: Mapping[str, Any],
    ) -> None:
        assert settings.temperature == 0, "sampled tokens would depend on the other requests in the batch"
        self._network: Any = network
        self._criteria = StopCriteria(tokenizer, [network.config, network.generation_config], end_of_turn)
        self._settings = settings
        self._limits = limits

    def refusal(self, request: GenerationRequest) -> str:
        """The reason why the model cannot complete the prompt; "" if it can."""
        return self._criteria.refusal(request)

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Index and completion of each request when it is finished. Raises CodetuneError if the manager fails or
        computes logits that are not finite."""
        if not requests:
            return
        limit = self._settings.max_new_tokens
        token_limits = [self._criteria.token_limit(request, limit) for request in requests]
        session = self._network.continuous_batching_context_manager(
            generation_config=self._generation_config(),
            continuous_batching_config=ContinuousBatchingConfig(
                return_logprobs=True, **self._limits, **_fixed_attention()
            ),
            warmup=self._network.device.type == "cuda",
            workload_hints=WorkloadHints(max(len(request.prompt) for request in requests), limit, len(requests)),
        )
        with session as manager:
            for index, request in enumerate(requests):
                streaming = bool(self._criteria.stop_strings(request))
                manager.add_request(list(request.prompt), str(index), token_limits[index], streaming=streaming)
            waiting = dict(enumerate(requests))
            try:
                while waiting:
                    yield from self._receive(manager, waiting)
            finally:
                for index in waiting:  # otherwise leaving the session waits for all of them
                    manager.cancel_request(str(index))

    def _receive(self, manager: Any, waiting: dict[int, GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Takes the next output of the manager. If its request is finished, yields it and removes it from `waiting`."""
        output = manager.get_result(timeout=RESULT_TIMEOUT_SECONDS)
        if output is None:
            if not manager.is_running():
                raise _broken("it stopped", len(waiting))
            return
        index = int(output.request_id)
        request = waiting.get(index)
        if request is None:  # cancelled at its stop string, with an output still in the queue
            return
        if output.error is not None:
            raise _broken(output.error, len(waiting))
        tokens = output.generated_tokens
        if not math.isfinite(sum(output.logprobs)):
            step = next(step for step, value in enumerate(output.logprobs) if not math.isfinite(value))
            raise not_finite_logits(request, step, str(self._network.dtype).removeprefix("torch."))
        stopped = len(tokens) % STOP_CHECK_TOKENS == 0 and self._criteria.has_stop(request, tokens)
        if not stopped and not output.is_finished():
            return
        if not output.is_finished():
            manager.cancel_request(output.request_id)
        del waiting[index]
        yield index, self._criteria.generated_text(request, tokens)

    def _generation_config(self) -> GenerationConfig:
        """Greedy decoding and nothing else: the model's own configuration may penalize repetition, or sample."""
        eos = sorted(self._criteria.tokens) or None
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=eos, max_new_tokens=self._settings.max_new_tokens
        )


def _fixed_attention() -> dict[str, Any]:
    """Keeps the attention that was set when the model was loaded: by default transformers 5.23 may fetch another one
    from the Hub. 5.17 has no such option and keeps flash attention."""
    known = "auto_switch_to_flash" in ContinuousBatchingConfig.__dataclass_fields__
    return {"auto_switch_to_flash": False} if known else {}


def _broken(reason: str, waiting: int) -> CodetuneError:
    memory = " Lower generate.max_new_tokens, or use a larger GPU." if "memory" in reason.lower() else ""
    return CodetuneError(
        f"Continuous batching ended with {waiting} completions to go ({reason}). Nothing that was finished is "
        f"lost.{memory} Run the same command again, or set generate.batch_size to a number: batches go without it."
    )
