"""The requests to vLLM and the use of its outputs, with a fake engine; vLLM itself needs a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from codetune.errors import CodetuneError
from codetune.model import vllm_engine
from codetune.model.decoding import GeneratedText, GenerationRequest, StopCriteria
from codetune.model.vllm_engine import VllmGenerator
from codetune.project.sections import Generation
from tests.model.builders import byte_tokenizer

TOKENIZER = byte_tokenizer(bos=True)
WINDOW = SimpleNamespace(eos_token_id=7, max_position_embeddings=30)


class Scripted:
    def __init__(self, text: str, reason: str, end: Sequence[int] = (), logprob: float = -1.0) -> None:
        self.ids, self.reason, self.logprob = [*TOKENIZER(text)["input_ids"], *end], reason, logprob
        self.asked: list[tuple[Sequence[int], dict[str, Any]]] = []

    def generate(self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]]) -> list[Any]:
        self.asked += zip(prompts, settings, strict=True)
        logprobs = [{token: SimpleNamespace(logprob=self.logprob)} for token in self.ids]
        return [SimpleNamespace(token_ids=self.ids, logprobs=logprobs, finish_reason=self.reason) for _ in prompts]


def generator(engine: Scripted, **settings: Any) -> VllmGenerator:
    endings = StopCriteria(TOKENIZER, [WINDOW], ["[/turn]"])
    return VllmGenerator(engine, endings, Generation(max_new_tokens=20, **settings), "float16")


def test_greedy_requests_name_every_end_and_their_token_limit() -> None:
    engine = Scripted("return 1\ndef g", "stop")
    ((number, written),) = generator(engine).complete([GenerationRequest(tuple(range(3, 18)), ("\ndef ",), "s")])
    assert (number, written.text, written.truncated) == (0, "return 1", False)
    ((prompt, settings),) = engine.asked
    assert tuple(prompt) == tuple(range(3, 18))
    assert settings == {
        "temperature": 0.0,
        "max_tokens": 15,  # the window of 30
        "stop": ["\ndef ", "[/turn]"],
        "stop_token_ids": sorted({7, TOKENIZER.eos_token_id}),
        "logprobs": 0,
    }


def test_logits_that_are_no_numbers_are_an_error_and_no_text() -> None:
    asked = [GenerationRequest((3,), (), "42/HumanEval/5/0")]
    with pytest.raises(CodetuneError, match=r"token 1 of the completion 42/HumanEval/5/0 .*computed in float16"):
        list(generator(Scripted("!!!!", "length", logprob=math.nan)).complete(asked))


def test_each_sample_has_its_own_seed() -> None:
    engine = Scripted("x", "length")
    list(
        generator(engine, temperature=0.8, top_p=0.9).complete(
            [GenerationRequest((3,), (), f"42/a/{n}") for n in range(2)]
        )
    )
    first, second = (settings for _, settings in engine.asked)
    assert (first["temperature"], first["top_p"]) == (0.8, 0.9)
    assert first["seed"] != second["seed"]


def test_an_eos_is_no_text_and_only_the_token_limit_truncates() -> None:
    asked = [GenerationRequest((3,), (), "")]
    ended = Scripted("return 1", "stop", end=[7])
    assert next(generator(ended).complete(asked))[1] == GeneratedText("return 1", len(ended.ids), truncated=False)
    # Some engines leave the end token out.
    assert not next(generator(Scripted("return 1", "stop")).complete(asked))[1].truncated
    assert next(generator(Scripted("return 1", "length")).complete(asked))[1].truncated


def test_many_requests_go_in_parts_and_keep_their_indices(monkeypatch: Any) -> None:
    monkeypatch.setattr(vllm_engine, "REQUESTS_AT_ONCE", 2)
    found = [number for number, _ in generator(Scripted("x", "stop")).complete([GenerationRequest((3,), (), "")] * 5)]
    assert found == [0, 1, 2, 3, 4]
