"""Greedy completions by the continuous batching of transformers (5.17 to 5.23): requests enter as others leave, over a
paged cache. For GPUs with flash attention: without it every step masks all requests' keys against each other, and on a
CPU it is several times slower than `complete.py`.

The manager is driven here, not `generate_batch`: that knows no stop strings, hands nothing over before the end, and
turns errors into missing results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.continuous_batching.utils import WorkloadHints
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from codetune.errors import CodetuneError
from codetune.model.decoding import STOP_CHECK_TOKENS, GeneratedText, GenerationRequest, StopCriteria
from codetune.project.sections import Generation

WAIT_SECONDS = 1.0


def flash_attention() -> str | None:
    """The kind of flash attention that is installed here, if any."""
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


class ContinuousGenerator:
    """Implements `decoding.Decoder`. `limits` bound the cache (num_blocks, max_batch_tokens); without them
    it takes what the GPU has left."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_of_turn: Sequence[str],
        settings: Generation,
        limits: Mapping[str, Any],
    ) -> None:
        assert settings.temperature == 0, "sampled tokens would depend on who shares the batch"
        self._model: Any = model
        self._endings = StopCriteria(tokenizer, [model.config, model.generation_config], end_of_turn)
        self._settings = settings
        self._limits = limits

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Number and completion of each request as it is finished."""
        if not requests:
            return
        most = self._settings.max_new_tokens
        rooms = [self._endings.room(request, most) for request in requests]
        session = self._model.continuous_batching_context_manager(
            generation_config=self._generation_config(),
            continuous_batching_config=ContinuousBatchingConfig(**{**self._limits, **_without_switching()}),
            warmup=self._model.device.type == "cuda",
            workload_hints=WorkloadHints(max(len(request.prompt) for request in requests), most, len(requests)),
        )
        with session as manager:
            for number, request in enumerate(requests):
                manager.add_request(
                    list(request.prompt), str(number), rooms[number], streaming=bool(self._endings.stops(request))
                )
            waiting = dict(enumerate(requests))
            try:
                while waiting:
                    yield from self._received(manager, waiting)
            finally:
                for number in waiting:  # else leaving would wait for all of them
                    manager.cancel_request(str(number))

    def _received(self, manager: Any, waiting: dict[int, GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """The next output of the manager, where it ends a request."""
        output = manager.get_result(timeout=WAIT_SECONDS)
        if output is None:
            if not manager.is_running():
                raise CodetuneError(_broken("it stopped", len(waiting)))
            return
        number = int(output.request_id)
        request = waiting.get(number)
        if request is None:  # cancelled at its stop string, and still on its way out
            return
        if output.error is not None:
            raise CodetuneError(_broken(output.error, len(waiting)))
        tokens = output.generated_tokens
        stopped = len(tokens) % STOP_CHECK_TOKENS == 0 and self._endings.has_stop(request, tokens)
        if not stopped and not output.is_finished():
            return
        if not output.is_finished():
            manager.cancel_request(output.request_id)
        del waiting[number]
        yield number, self._endings.written(request, tokens)

    def _generation_config(self) -> GenerationConfig:
        """Of nothing but the greedy choice: a model's own may repeat less, or sample."""
        ends = sorted(self._endings.tokens) or None
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=ends, max_new_tokens=self._settings.max_new_tokens
        )


def use_flash_attention(model: PreTrainedModel, kind: str) -> None:
    model.set_attn_implementation(kind)


def _without_switching() -> dict[str, Any]:
    """Which attention runs is decided when the model is loaded; left alone, transformers 5.23 may fetch one from the
    hub. 5.17 has no such switch and leaves flash attention as it is."""
    known = "auto_switch_to_flash" in ContinuousBatchingConfig.__dataclass_fields__
    return {"auto_switch_to_flash": False} if known else {}


def _broken(why: str, waiting: int) -> str:
    memory = " Lower generate.max_new_tokens, or use a larger GPU." if "memory" in why.lower() else ""
    return (
        f"Continuous batching ended with {waiting} completions to go ({why}). Nothing that was finished is "
        f"lost.{memory} Run the same command again, or set generate.batch_size to a number: batches go without it."
    )
