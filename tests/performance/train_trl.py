"""TRL's SFTTrainer with packing (best fit decreasing, its default) on the rows of `train.py`: same weights, same
optimizer, same precision, activations recomputed or kept as there.

Its unit is the packed row, so as many of them make a micro-batch as hold the tokens of codetune's, and a step is as
many micro-batches. It computes the loss of answers only. Without flash-attn it lets transformers keep samples apart by
a mask of positions."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.performance.train import Size


def measure_trl(size: Size, method: str, steps: int, data: Path) -> dict[str, Any]:
    from codetune.launch.environment import prepare_process

    prepare_process()
    from tests.performance.train import MAX_LENGTH, NOT_INSTALLED, bytes_of, memory, network_of, rows_of

    try:
        import trl
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        sys.exit(NOT_INSTALLED)
    import datasets
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from transformers.utils.import_utils import is_flash_attn_2_available

    from codetune.launch.devices import choose_device
    from codetune.model.load import load_tokenizer
    from codetune.training.metrics import FlopCounter
    from tests.performance.train import TOKENIZER

    rows = [tokens for _, tokens in rows_of(size, steps, data)]
    in_all, device = sum(len(row.ids) for row in rows), choose_device()
    accumulated = size.settings["gradient_accumulation_steps"]
    in_micro_batch = in_all / (accumulated * (steps + 1))
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(data / "tokenizers" / TOKENIZER)  # type: ignore[assignment]
    tokenizer.pad_token = tokenizer.eos_token
    network = network_of(size, method, device)
    if device != "cpu" and is_flash_attn_2_available():
        network.set_attn_implementation("flash_attention_2")
    before = 0 if device != "cpu" else memory() - bytes_of(network.parameters())
    counted: list[tuple[float, int]] = []  # when a step ended, and the tokens that had been seen by then

    class Counting(SFTTrainer):  # type: ignore[misc]
        seen = padded = 0

        def compute_loss(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            labelled = inputs.get("attention_mask")
            Counting.padded += inputs["input_ids"].numel()
            Counting.seen += inputs["input_ids"].numel() if labelled is None else int(labelled.sum())
            return super().compute_loss(model, inputs, *more, **named)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            counted.append((time.perf_counter(), Counting.seen))

    with tempfile.TemporaryDirectory() as directory:
        arguments = SFTConfig(
            output_dir=directory,
            packing=True,
            max_length=MAX_LENGTH,
            per_device_train_batch_size=max(1, round(in_micro_batch / MAX_LENGTH)),
            gradient_accumulation_steps=accumulated,
            max_steps=steps + 1,
            learning_rate=5e-5,
            lr_scheduler_type="cosine",
            optim="adamw_torch_fused",
            bf16=size.dtype == "bfloat16",
            use_cpu=device == "cpu",
            gradient_checkpointing=size.settings["gradient_checkpointing"],
            completion_only_loss=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = datasets.Dataset.from_list(
            [{"input_ids": list(row.ids), "completion_mask": [int(learned) for learned in row.learned]} for row in rows]
        )
        adapters = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = Counting(
            model=network,
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=adapters if method == "lora" else None,
            callbacks=[Clock()],
        )
        began = time.process_time()
        trainer.train()
        cpu_seconds = time.process_time() - began
    (start, seen_before), (end, seen) = counted[0], counted[-1]
    tokens, seconds = seen - seen_before, end - start
    flop_counter = FlopCounter.of(network, method)  # type: ignore[arg-type]
    assert flop_counter is not None
    flops = [
        flop_counter.flops(len(row.ids), len(row.ids) ** 2, sum(row.learned)) for row in rows
    ]  # each token is in them once, whatever row it is packed into
    held = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return {
        "padding_rate": 1 - Counting.seen / Counting.padded,
        "samples_per_second": tokens / (in_all / len(rows)) / seconds,
        "tokens_per_second": tokens / seconds,
        "seconds_per_step": seconds / (len(counted) - 1),
        "cpu_seconds_per_step": cpu_seconds / len(counted),
        "operations_per_second": sum(flops) / in_all * tokens / seconds,
        "peak_memory_bytes": memory() - before,
        "state_bytes": bytes_of(network.parameters()) + bytes_of(held),
        "attention": network.config._attn_implementation,
        "losses": [],
        "trl": trl.__version__,
    }
