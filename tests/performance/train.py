"""Pad modes side by side on Evol-Instruct lengths: the same samples in the same steps, padding, speed and memory.

    python -m tests.performance.train                               # CPU size, some minutes
    python -m tests.performance.train --size 1.3b --method full     # one GPU; 6.7b as well, and lora
    python -m tests.performance.train --size 6.7b --only 'dynamic_pad;dynamic_pack'

Real rows with DeepSeek-Coder's tokenizer and chat format (--data, or $CODETUNE_TEST_DATA, or ../shared/data), random
weights of the shape, the trainer that `codetune train` uses. Every variant runs in a process of its own: one step to
warm up, then --steps that count. `dynamic_pad` in drawn order is the baseline. Beside them the same training with all
logits made at once, with activations kept and made again, with the layers compiled (by torch.compile, with dynamic
shapes; the graphs that it made in all steps are counted), and TRL's SFTTrainer with its packing where trl is installed
(pip install trl; see train_trl.py). The arithmetic that is counted has
neither padding nor recomputation in it; its share is of the rate that this machine reaches in a plain matrix product.
Peak memory is torch.cuda.max_memory_allocated; without a GPU it is by how much the process has grown at most."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TOKENIZER = "deepseek-coder-6.7b-instruct"
# Settings of `train` by name; the first is the baseline.
VARIANTS: dict[str, dict[str, Any]] = {
    "dynamic_pad": {"pad_mode": "dynamic_pad"},
    "dynamic_pad sorted": {"pad_mode": "dynamic_pad", "sort_in_step": True},
    "max_length": {"pad_mode": "max_length"},
    "paper_pack not isolated": {"pad_mode": "paper_pack", "pack_isolation": False},
    "paper_pack": {"pad_mode": "paper_pack"},
    "dynamic_pack": {"pad_mode": "dynamic_pack"},
    "dynamic_pack, all logits": {"pad_mode": "dynamic_pack"},
    "dynamic_pack, kept": {"pad_mode": "dynamic_pack", "gradient_checkpointing": False},
    "dynamic_pack, made again": {"pad_mode": "dynamic_pack", "gradient_checkpointing": True},
    "dynamic_pad, compiled": {"pad_mode": "dynamic_pad", "compile": "always"},
    "dynamic_pack, compiled": {"pad_mode": "dynamic_pack", "compile": "always"},
}
COMPILED = ("dynamic_pad, compiled", "dynamic_pack, compiled")
ALL_LOGITS = "dynamic_pack, all logits"
TRL = "trl, packing"
BASELINE = next(iter(VARIANTS))
RATE = "matrix products"
MAX_LENGTH = 2048
NOT_INSTALLED = 64  # exit status


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a model, and how it is trained."""

    shape: dict[str, int]
    dtype: str
    settings: dict[str, Any]
    product: int  # rows and columns of the square matrices whose product is timed


def llama(hidden: int, layers: int, heads: int, intermediate: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 16384,
    }


BATCH = {"per_device_batch_size": 16, "gradient_accumulation_steps": 4}  # as published
SIZES = {
    # Token ids are taken modulo the vocabulary: a small model's output layer would be most of it.
    "cpu": Size(
        llama(128, 4, 4, 352, 4096),
        "float32",
        BATCH | {"gradient_accumulation_steps": 2, "gradient_checkpointing": False},
        1024,
    ),
    # DeepSeek-Coder's shapes.
    "1.3b": Size(llama(2048, 24, 16, 5504, 32256), "bfloat16", BATCH | {"gradient_checkpointing": True}, 8192),
    "6.7b": Size(llama(4096, 32, 32, 11008, 32256), "bfloat16", BATCH | {"gradient_checkpointing": True}, 8192),
}


def main() -> None:
    given = _arguments()
    if given.variant == RATE:
        print(json.dumps(matrix_rate(SIZES[given.size])))
        return
    if given.variant == TRL:
        from tests.performance.train_trl import measure_trl

        print(json.dumps(measure_trl(SIZES[given.size], given.method, given.steps, given.data)))
        return
    if given.variant:
        print(json.dumps(measure(given)))
        return
    names = given.only.split(";") if given.only else [*VARIANTS, TRL]
    figures: dict[str, Any] = {RATE: _in_a_process(given, RATE)}
    for name in names:
        figures[name] = _in_a_process(given, name)
        figures[name] |= ratio_of("operations_per_second", "share_of_matrix_rate", figures[name], figures[RATE])
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
        path = _write(given, figures)  # at once: a later variant may be stopped by a time limit
    _print_table(figures, names)
    print(path)


def _write(given: argparse.Namespace, figures: dict[str, Any]) -> Path:
    from tests.performance.record import write_record

    settings = {
        "size": given.size,
        "method": given.method,
        "steps": given.steps,
        "seed": 42,
        **SIZES[given.size].settings,
    }
    settings["load_average"] = os.getloadavg()[1]  # on a busy machine CPU seconds say more than seconds
    return write_record(f"train-{given.size}-{given.method}", settings | SIZES[given.size].shape, figures)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One variant, in this process."""
    from codetune.launch.environment import prepare_process

    prepare_process()

    from codetune.data.token_cache import write_token_cache
    from codetune.launch.devices import choose_device
    from codetune.launch.process_group import SINGLE_PROCESS
    from codetune.project.sections import Model, Project, Training
    from codetune.training.build_model import BaseModel, prepare_model, training_inputs
    from codetune.training.callbacks import TrainingCallbacks
    from codetune.training.loss import plain_losses
    from codetune.training.trainer import StepTrainer, training_arguments

    size, device = SIZES[given.size], choose_device()
    chosen = {
        "method": given.method,
        "max_steps": given.steps + 1,
        "logging_steps": 1,
        "save_minutes": None,
        "save_steps": 10**6,
    }
    settings = Training(**{**size.settings, **VARIANTS[given.variant], **chosen})
    project = Project(model=Model(dtype=size.dtype, chat_format="deepseek"), train=settings)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        token_cache = write_token_cache(rows_of(size, given.steps, given.data), directory / "tokens")
        network = network_of(size, given.method, device)
        base = BaseModel(directory, size.dtype, "alone")  # type: ignore[arg-type]
        model = prepare_model(network, project, base)
        callbacks = TrainingCallbacks(settings, directory, {}, given.steps + 1, lambda _: None, SINGLE_PROCESS)
        callbacks.on_train_begin(None)
        arguments = training_arguments(project, base, given.steps + 1, directory, device)
        inputs = training_inputs(model, project, base, token_cache, None, SINGLE_PROCESS)
        if given.variant == ALL_LOGITS:
            inputs = replace(inputs, build_loss=lambda _: plain_losses)
        trainer = StepTrainer(model, arguments, inputs, callbacks)
        before = 0 if device != "cpu" else memory() - bytes_of(model.parameters())
        began = time.process_time()
        trainer.run(None)
        cpu_seconds = time.process_time() - began
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    counted, total = lines[1:], callbacks.metrics.since_start
    seconds = sum(line["seconds"] for line in counted)
    flops = total.flops / total.steps * len(counted)  # those of a step hardly vary
    held = [value for state in trainer.optimizer.state.values() for value in state.values()]  # type: ignore[union-attr]
    return {
        "padding_rate": total.padding_rate,
        "samples_per_second": sum(line["samples_per_second"] * line["seconds"] for line in counted) / seconds,
        "tokens_per_second": sum(line["tokens_per_second"] * line["seconds"] for line in counted) / seconds,
        "seconds_per_step": seconds / len(counted),
        "cpu_seconds_per_step": cpu_seconds / len(lines),  # what a busy machine does not change
        "operations_per_second": flops / seconds,
        "peak_memory_bytes": memory() - before,
        "state_bytes": bytes_of(model.parameters()) + bytes_of(held),
        "attention": network.config._attn_implementation,
        "losses": [line["loss"] for line in lines],
        **({"graphs": compiled_graphs()} if given.variant in COMPILED else {}),
    }


def compiled_graphs() -> int:
    """One is of the function that tries the compiler. More than a few, and shapes of later steps were compiled anew."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def matrix_rate(size: Size) -> dict[str, float]:
    """Floating-point operations a second of a plain square matrix product, the best of several."""
    from codetune.launch.environment import prepare_process

    prepare_process()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size.product, size.product, device=device).to(getattr(torch, size.dtype)) for _ in "ab")
    fastest = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    return {"operations_per_second": 2 * size.product**3 / fastest}


def memory() -> int:
    """The most that was in use so far, in bytes."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def network_of(size: Size, method: str, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    dtype = torch.float32 if method == "full" else getattr(torch, size.dtype)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(LlamaConfig(**size.shape), dtype=dtype)
    return network.eval()


def rows_of(size: Size, steps: int, data: Path) -> list[tuple[str, Any]]:
    """As many as the steps need and the one to warm up, from all over the data: the same for every variant."""
    rows = list(_rows(data, MAX_LENGTH, size.shape["vocab_size"]))
    count = size.settings["per_device_batch_size"] * size.settings["gradient_accumulation_steps"] * (steps + 1)
    return rows[:: len(rows) // count][:count]


def _rows(data: Path, max_length: int, vocabulary: int) -> Iterator[tuple[str, Any]]:
    from codetune.data.source import read_examples
    from codetune.data.tokens import TrainingTokens, training_tokens
    from codetune.model.load import load_tokenizer
    from codetune.project.sections import Dataset
    from codetune.records import Example

    tokenizer = load_tokenizer(data / "tokenizers" / TOKENIZER)
    dataset = Dataset(path=str(data / "instruct" / "evol-round*.json"), instruction="instruction", response="output")
    for example in read_examples(dataset, dataset.path):
        if isinstance(example, Example):
            tokens = training_tokens(tokenizer, "deepseek", example, max_length, "truncate", "all")
            if isinstance(tokens, TrainingTokens):
                yield example.id, replace(tokens, ids=tuple(token % vocabulary for token in tokens.ids))


def bytes_of(held: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in held if hasattr(value, "element_size"))


def _in_a_process(given: argparse.Namespace, variant: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.performance.train", "--variant", variant, "--size", given.size]
    command += ["--method", given.method, "--steps", str(given.steps), "--data", str(given.data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == NOT_INSTALLED:
        return {"missing": variant}
    if done.returncode:
        return {"failed": done.returncode}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ratio_of(figure: str, name: str, found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """The ratio of a figure to that of the reference, under `name`; nothing where one of them was not measured.

    >>> ratio_of("speed", "ratio", {"speed": 3.0}, {"speed": 2.0}), ratio_of("speed", "ratio", {}, {"speed": 2.0})
    ({'ratio': 1.5}, {})
    """
    return {name: found[figure] / reference[figure]} if figure in found and figure in reference else {}


def _print_table(figures: dict[str, Any], names: list[str]) -> None:
    baseline = figures.get(BASELINE, {})
    print(
        f"{'':26} padding  samples/s  tokens/s  peak GB  beyond state  of matrix rate  CPU s/step  against {BASELINE}"
    )
    for name in names:
        found = figures[name]
        if "missing" in found:
            print(f"{name:26} is not installed")
            continue
        if "failed" in found:
            print(f"{name:26} failed with exit status {found['failed']}")
            continue
        beyond = found["peak_memory_bytes"] - found["state_bytes"]
        ratios = {
            **ratio_of("operations_per_second", "rate", found, figures[RATE]),
            **ratio_of("samples_per_second", "speed", found, baseline),
        }
        share = f"{ratios['rate']:.1%}" if "rate" in ratios else "not measured"
        speed = f"{ratios['speed']:.2f} times" if "speed" in ratios else "not measured"
        print(
            f"{name:26} {found['padding_rate']:6.1%}  {found['samples_per_second']:9.2f}  "
            f"{found['tokens_per_second']:8.0f}  {found['peak_memory_bytes'] / 1e9:7.2f}  {beyond / 1e9:12.2f}  "
            f"{share:>14}  {found['cpu_seconds_per_step']:10.1f}  {speed}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps that count, besides the first")
    parser.add_argument("--only", help=f"some of: {';'.join([*VARIANTS, TRL])}")
    parser.add_argument("--data", type=Path, default=_data(), help="directory with instruct/ and tokenizers/")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser.parse_args()


def _data() -> Path:
    named = os.environ.get("CODETUNE_TEST_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"


if __name__ == "__main__":
    main()
