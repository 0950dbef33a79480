"""Generation against one `model.generate` a prompt, on HumanEval's prompts, in one run.

    python -m tests.performance.generate HumanEvalPlus.jsonl.gz [--size 0.8M --size 100M]      on a CPU, minutes
    python -m tests.performance.generate HumanEvalPlus.jsonl.gz --size 1.3B --size 6.7B        on a GPU, bfloat16

Random weights of the shapes named; no end token, so every completion has the same length and both write as many
tokens. One prompt at a time goes over a part of the tasks where the model is large; rates are compared, tokens a
second, pair by pair in each round. In float32 both must write the same tokens."""

from __future__ import annotations

# Before torch: threads that wait by spinning take the cores from each other.
from codetune.launch.environment import prepare_process, thread_count

prepare_process()

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from codetune.benchmark.benchmarks import read_problems
from codetune.model.batch_generator import BatchGenerator
from codetune.model.continuous_batching import ContinuousGenerator, flash_attention
from codetune.model.decoding import Decoder, GenerationRequest
from codetune.project.sections import Generation
from tests.model.builders import byte_tokenizer
from tests.performance.record import write_record

# hidden, intermediate, layers, heads, vocabulary; the last two are DeepSeek-Coder's
SHAPES = {
    "0.8M": (128, 384, 4, 4, 512),
    "100M": (768, 2048, 12, 12, 32_256),
    "1.3B": (2048, 5504, 24, 16, 32_256),
    "6.7B": (4096, 11_008, 32, 32, 32_256),
}
# tasks for ours, tasks one at a time, new tokens
WORK = {"0.8M": (32, 32, 24), "100M": (6, 6, 24), "1.3B": (164, 12, 256), "6.7B": (164, 6, 256)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("problems", type=Path)
    arguments.add_argument("--size", action="append", choices=list(SHAPES))
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(thread_count())
    gpu = torch.cuda.is_available()
    texts = [problem.prompt.strip() for problem in read_problems(given.problems)]
    sizes = given.size or (["1.3B", "6.7B"] if gpu else ["0.8M", "100M"])
    for size in sizes:
        settings = {"rounds": given.rounds, "shape": SHAPES[size]}
        print(write_record(f"generate-{'gpu' if gpu else 'cpu'}-{size}", settings, measure(size, texts, given.rounds)))


def measure(size: str, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Tokens a second of each decoder, and its ratio to one prompt at a time in every round."""
    many, few, length = WORK[size]
    tokenizer = byte_tokenizer(bos=True, texts=texts)
    prompts = sorted((tuple(tokenizer(text)["input_ids"]) for text in texts), key=lambda prompt: -len(prompt))
    # Of about equal length, as a batch of the whole benchmark is; from the middle, as most are.
    prompts = prompts[(len(prompts) - many) // 2 :][:many]
    alone = prompts[:: len(prompts) // few][:few]
    model = network(size)
    tokenizer.eos_token = None
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        rates.setdefault("one at a time", []).append(rate(lambda: one_at_a_time(model, alone, length)))
        for name, run in own_decoders(model, tokenizer, prompts, length).items():
            rates.setdefault(name, []).append(rate(run))
    ratios = {
        name: [round(ours / base, 2) for ours, base in zip(found, rates["one at a time"], strict=True)]
        for name, found in rates.items()
        if name != "one at a time"
    }
    figures: dict[str, Any] = {
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "dtype": str(model.dtype),
        "tasks": {"ours": len(prompts), "one at a time": len(alone)},
        "new_tokens": length,
        "tokens_per_second": {name: [round(value, 1) for value in found] for name, found in rates.items()},
        "ratios": ratios,
        "median_ratio": {name: statistics.median(found) for name, found in ratios.items()},
    }
    if model.dtype == torch.float32:
        figures["same_text"] = same_text(model, tokenizer, alone, length)
    print(size, figures["tokens_per_second"], figures["median_ratio"], figures.get("same_text"), flush=True)
    return figures


def network(size: str) -> Any:
    hidden, intermediate, layers, heads, vocabulary = SHAPES[size]
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        initializer_range=0.1,  # far from uniform: no ties
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    gpu = torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if gpu else torch.float32).eval()


def own_decoders(
    model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], length: int
) -> dict[str, Callable[[], int]]:
    """codetune's decoders that work here, each as a function that returns how many tokens it generated."""
    settings = Generation(max_new_tokens=length)
    found: dict[str, Callable[[], int]] = {
        "batches": lambda: completed(BatchGenerator(model, tokenizer, [], settings), prompts)
    }
    kind = flash_attention() if model.device.type == "cuda" else None
    if kind is not None:

        def continuous() -> int:
            model.set_attn_implementation(kind)
            try:
                return completed(ContinuousGenerator(model, tokenizer, [], settings, {}), prompts)
            finally:
                model.set_attn_implementation("sdpa")

        found["continuous"] = continuous
    return found


def completed(decoder: Decoder, prompts: Sequence[tuple[int, ...]]) -> int:
    return sum(
        written.tokens for _, written in decoder.complete([GenerationRequest(prompt, (), "") for prompt in prompts])
    )


@torch.inference_mode()
def one_at_a_time(model: Any, prompts: Sequence[tuple[int, ...]], length: int) -> int:
    """As published scripts do it. Returns how many tokens it generated."""
    return sum(
        len(tokens) - len(prompt) for prompt, tokens in zip(prompts, greedy(model, prompts, length), strict=True)
    )


def greedy(model: Any, prompts: Sequence[tuple[int, ...]], length: int) -> list[list[int]]:
    written = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length)
        written.append(tokens[0].tolist())
    return written


def same_text(model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], length: int) -> str:
    decoder = BatchGenerator(model, tokenizer, [], Generation(max_new_tokens=length))
    ours = dict(decoder.complete([GenerationRequest(prompt, (), "") for prompt in prompts]))
    equal = 0
    for number, tokens in enumerate(greedy(model, prompts, length)):
        whole, before = (tokenizer.decode(part, skip_special_tokens=True) for part in (tokens, prompts[number]))
        equal += whole[len(before) :] == ours[number].text
    return f"{equal} of {len(prompts)}"


def rate(run: Callable[[], int]) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    tokens = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
