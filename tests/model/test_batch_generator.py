"""Completions do not depend on how prompts are put into batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Starcoder2Config,
)

from codetune.errors import CodetuneError, InputError
from codetune.model.batch_generator import BatchGenerator, cache_bytes_per_token, rows_that_fit
from codetune.model.decoding import GeneratedText, GenerationRequest
from codetune.project.sections import Generation

EOS, END_OF_TURN = 256, 257
VOCABULARY = 258
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform: no ties
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "starcoder2": Starcoder2Config(**SIZES, sliding_window=16),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=EOS,
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """256 characters are tokens, so every list of them is a text of its own."""
    characters = [chr(code) if 32 <= code < 127 or code == 10 else chr(0x4E00 + code) for code in range(256)]
    vocabulary = {name: index for index, name in enumerate((*characters, "<eos>", "<end>"))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", additional_special_tokens=["<end>"])


def network(architecture: str) -> Any:
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]).eval().float()


def prompts(count: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 40, (count,), generator=drawn).tolist()
    return [torch.randint(0, 256, (length,), generator=drawn).tolist() for length in lengths]


def completed(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Sequence[int]],
    most: int,
    stops: Sequence[str] = (),
    **settings: Any,
) -> list[str]:
    """The completions in the order of the prompts."""
    generator = BatchGenerator(model, tokenizer, [], Generation(max_new_tokens=most, **settings))
    return [written.text for written in in_order(generator, asked, stops)]


def in_order(
    generator: BatchGenerator, asked: Sequence[Sequence[int]], stops: Sequence[str] = ()
) -> list[GeneratedText]:
    """The stream of a request is its prompt, so that it goes with it into any batch."""
    found = dict(generator.complete([GenerationRequest(tuple(prompt), tuple(stops), str(prompt)) for prompt in asked]))
    return [found[number] for number in range(len(asked))]


@torch.inference_mode()
def alone_without_cache(model: Any, prompt: Sequence[int], most: int, ends: set[int]) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most:
        token = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_writes_what_each_prompt_alone_writes_without_a_cache(
    architecture: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, asked = network(architecture), prompts(12)
    found = completed(model, tokenizer, asked, 24)
    expected = [alone_without_cache(model, prompt, 24, {EOS}) for prompt in asked]
    plain = [
        tokenizer.decode(prompt + new, skip_special_tokens=True)[len(tokenizer.decode(prompt)) :]
        for prompt, new in zip(asked, expected, strict=True)
    ]
    assert found == plain
    assert len(set(found)) > 6  # the prompts matter


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neither_batch_size_nor_order_changes_a_completion(
    architecture: str, sampling: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    model, asked, stops = network(architecture), prompts(16), ("a", "bc")
    together = completed(model, tokenizer, asked, 30, stops, **sampling)
    for size in (1, 5):
        assert completed(model, tokenizer, asked, 30, stops, batch_size=size, **sampling) == together
    assert completed(model, tokenizer, asked[::-1], 30, stops, **sampling) == together[::-1]
    assert completed(model, tokenizer, asked[7:9], 30, stops, **sampling) == together[7:9]  # taken up again


def test_samples_of_one_prompt_differ_and_can_be_reproduced(tokenizer: PreTrainedTokenizerFast) -> None:
    settings = Generation(max_new_tokens=12, temperature=1.0, top_p=1.0)
    generator = BatchGenerator(network("llama"), tokenizer, [], settings)
    requests = [GenerationRequest((5, 6, 7), (), f"42/Own/0/{number}") for number in range(6)]
    first = dict(generator.complete(requests))
    assert len({written.text for written in first.values()}) == 6
    assert next(generator.complete(requests[3:4]))[1] == first[3]


def test_greedy_completions_are_those_of_transformers(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = network("llama"), [prompt for prompt in prompts(30) if len(prompt) == max(map(len, prompts(30)))]
    ids = torch.tensor(asked)
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=EOS
    )
    ours = completed(model, tokenizer, asked, 20)
    for prompt, row, text in zip(asked, theirs.tolist(), ours, strict=True):
        assert tokenizer.decode(row, skip_special_tokens=True)[len(tokenizer.decode(prompt)) :] == text


class Scripted(torch.nn.Module):
    """Writes a given text after any prompt of one length: its logits look only at how many tokens a row has."""

    def __init__(self, script: Sequence[int], prompt_length: int, vocabulary: int, rows_at_most: int) -> None:
        super().__init__()
        self.config = LlamaConfig(**SIZES)
        self.generation_config = None
        self.device = torch.device("cpu")
        self.script, self.prompt_length, self.vocabulary = list(script), prompt_length, vocabulary
        self.rows_at_most, self.calls = rows_at_most, 0

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(weight=torch.zeros(self.vocabulary, 1))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, past_key_values: Any, **_: Any) -> Any:
        if len(input_ids) > self.rows_at_most:
            raise torch.OutOfMemoryError("too many rows")
        self.calls += 1
        fill = torch.zeros(len(input_ids), 1, input_ids.shape[1], 1)
        for layer in range(2):
            past_key_values.update(fill, fill, layer)
        logits = torch.zeros(len(input_ids), 1, self.vocabulary)
        for row, position in enumerate(position_ids[:, -1].tolist()):
            logits[row, 0, self.script[position + 1 - self.prompt_length]] = 1
        return SimpleNamespace(logits=logits)


def complete_script(
    tokenizer: PreTrainedTokenizerFast, script: list[int], stops: Sequence[str], most: int, rows_at_most: int = 4
) -> tuple[GeneratedText, int]:
    model: Any = Scripted(script, 3, VOCABULARY, rows_at_most)
    generator = BatchGenerator(model, tokenizer, ["<end>", "[/turn]"], Generation(max_new_tokens=most))
    written, *others = in_order(generator, [[1, 2, 3]] * 4, stops)
    assert all(other == written for other in others)
    return written, model.calls


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def test_a_completion_ends_before_the_earliest_stop_string(tokenizer: PreTrainedTokenizerFast) -> None:
    script = ids(tokenizer, "    return x\nclass A:\n    pass\ndef g():" + " " * 60)
    written, steps = complete_script(tokenizer, script, ("\ndef ", "\nclass "), 90)
    # The stop is whole with the 19th token; it is looked for after every 8th.
    assert (written, steps) == (GeneratedText("    return x", 24, truncated=False), 24)


@pytest.mark.parametrize("token", [EOS, END_OF_TURN])
def test_an_end_token_ends_a_completion_and_is_not_part_of_it(token: int, tokenizer: PreTrainedTokenizerFast) -> None:
    script = [*ids(tokenizer, "return 1"), token, *ids(tokenizer, "more")]
    assert complete_script(tokenizer, script, (), 60) == (GeneratedText("return 1", 9, truncated=False), 9)


def test_an_end_of_turn_that_is_no_token_is_a_stop_string(tokenizer: PreTrainedTokenizerFast) -> None:
    assert complete_script(tokenizer, ids(tokenizer, "ok[/turn]" + "x" * 50), (), 50)[0].text == "ok"


def test_a_stop_string_that_is_cut_by_the_token_limit_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    assert complete_script(tokenizer, ids(tokenizer, "a = 1\ndef g"), ("\ndef g",), 10)[0].text == "a = 1\ndef "


@pytest.mark.parametrize(
    ("limit", "stops", "truncated"),
    [(8, (), True), (9, (), False), (20, (), False), (8, ("\n1",), False)],
    ids=["the limit", "the limit and EOS", "EOS", "the limit and a stop string"],
)
def test_a_completion_is_truncated_if_only_the_token_limit_ended_it(
    limit: int, stops: tuple[str, ...], truncated: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    script = [*ids(tokenizer, "return\n1"), EOS]
    assert complete_script(tokenizer, script, stops, limit)[0].truncated is truncated


def test_a_batch_too_large_for_the_memory_is_halved_and_so_are_those_after_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    script = [*ids(tokenizer, "return 1"), EOS]
    written, steps = complete_script(tokenizer, script, (), 60, rows_at_most=1)
    assert (written.text, steps) == ("return 1", 4 * 9)
    with pytest.raises(CodetuneError, match="one prompt of 3 tokens"):
        complete_script(tokenizer, script, (), 60, rows_at_most=0)


def test_a_cached_token_takes_the_keys_and_values_of_every_layer() -> None:
    # 2 (keys, values) x 2 layers x 2 heads x 8 numbers x 4 bytes
    assert cache_bytes_per_token(ARCHITECTURES["llama"], torch.float32) == 256
    assert cache_bytes_per_token(ARCHITECTURES["gpt2"], torch.bfloat16) == 2 * 2 * 4 * 8 * 2
    assert rows_that_fit(10**6, 10**9) == 1


def test_the_window_limits_every_row_by_its_own_length(tokenizer: PreTrainedTokenizerFast) -> None:
    model = network("llama")
    long, short = prompts(1)[0] + [5] * (126 - len(prompts(1)[0])), [9]
    texts = completed(model, tokenizer, [long, short], 10)
    assert texts == [*completed(model, tokenizer, [long], 2), *completed(model, tokenizer, [short], 10)]
    generator = BatchGenerator(model, tokenizer, [], Generation(max_new_tokens=10))
    full, nearly = (GenerationRequest((1,) * tokens, (), "") for tokens in (128, 127))
    assert [generator.refusal(full), generator.refusal(nearly)] == ["prompt fills the model's window of 128 tokens", ""]


def test_a_prompt_token_without_an_embedding_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="the token 300, and the model knows 258"):
        completed(network("llama"), tokenizer, [[5], [300, 7]], 10)


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
def test_logits_that_are_no_numbers_are_an_error_and_no_text(
    tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    model = network("llama").half()
    with torch.no_grad():
        model.model.norm.weight.fill_(6e4)  # the logits overflow
    writer = BatchGenerator(model, tokenizer, [], Generation(max_new_tokens=4, temperature=temperature))
    with pytest.raises(CodetuneError, match=r"token 1 of the completion 42/HumanEval/5/0 .*computed in float16"):
        list(writer.complete([GenerationRequest((5, 6), (), "42/HumanEval/5/0")]))


def test_a_token_that_the_model_excludes_by_minus_infinity_is_no_error(tokenizer: PreTrainedTokenizerFast) -> None:
    model = network("llama")
    model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([3]), -torch.inf)
    )
    ((_, written),) = BatchGenerator(model, tokenizer, [], Generation(max_new_tokens=4)).complete(
        [GenerationRequest((5, 6), (), "")]
    )
    assert written.tokens == 4


def test_a_leading_space_survives_a_sentencepiece_tokenizer(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/codellama")
    prompt = tokenizer("def f(x):")["input_ids"]
    after = tokenizer("def f(x): return x")["input_ids"][len(prompt) :]
    model: Any = Scripted([*after, tokenizer.eos_token_id], len(prompt), len(tokenizer), rows_at_most=1)
    assert completed(model, tokenizer, [prompt], 20) == [" return x"]


def test_a_hundred_tasks_with_a_small_model_take_seconds(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(1)
    sizes = SIZES | {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "max_position_embeddings": 512,
    }
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = 511
    start = time.monotonic()
    completed(model, tokenizer, [[7] * 60] * 100, 60, ("\ndef ", "\nclass ", "\nimport "), batch_size=50)
    assert time.monotonic() - start < 30
