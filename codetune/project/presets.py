"""The presets of `codetune init`: for each name the keys whose values differ from the defaults in `sections.py`."""

from __future__ import annotations

from collections.abc import Mapping

# The published selection drops rows by their IFD alone; so it can be repeated to the row.
PUBLISHED_SELECTION: Mapping[str, object] = {
    "select.mismatch": "ifd",
    "select.deduplicate": "none",
    "select.decontaminate": [],
    "select.checks": [],
}
PRESETS: Mapping[str, Mapping[str, object]] = {
    "deepseek-oss": {
        "name": "deepseek-oss-40",
        "dataset.path": "ise-uiuc/Magicoder-OSS-Instruct-75K",
        "dataset.instruction": "problem",
        "dataset.response": "solution",
        "model.path": "deepseek-ai/deepseek-coder-6.7b-base",
        "model.chat_format": "deepseek",
        **PUBLISHED_SELECTION,
    },
    "codellama-evol": {
        "name": "codellama-evol-40",
        "dataset.path": "nickrosh/Evol-Instruct-Code-80k-v1",
        "dataset.instruction": "instruction",
        "dataset.response": "output",
        "model.path": "codellama/CodeLlama-7b-Python-hf",
        "model.chat_format": "codellama",
        **PUBLISHED_SELECTION,
    },
    # "LoRA Without Regret" (Schulman et al. 2025, thinkingmachines.ai/blog/lora): adapters on all linear layers, alpha
    # 32 at any rank, ten times the learning rate of a full training, held constant, and small batches.
    "lora": {
        "name": "lora-oss-40",
        "dataset.path": "ise-uiuc/Magicoder-OSS-Instruct-75K",
        "dataset.instruction": "problem",
        "dataset.response": "solution",
        "model.path": "deepseek-ai/deepseek-coder-6.7b-base",
        "model.chat_format": "deepseek",
        "train.method": "lora",
        "train.global_batch_size": 32,
        "train.learning_rate": 5.0e-4,
        "train.scheduler": "constant",
        "train.warmup_steps": 0,
        "train.lora.r": 128,
        "train.lora.alpha": 32,
        "train.lora.dropout": 0.0,
    },
    "cpu": {
        "name": "cpu-40",
        "dataset.path": "data.jsonl",
        "dataset.instruction": "instruction",
        "dataset.response": "output",
        "model.path": "HuggingFaceTB/SmolLM2-135M",
        "model.chat_format": "codeqwen",
        "model.dtype": "float32",
        "score.max_length": 1024,
        "embed.model": "hashing",
        "train.method": "lora",
        "train.max_length": 1024,
        "train.epochs": 1,
        "train.per_device_batch_size": 4,
        "train.learning_rate": 2.0e-4,
        "train.gradient_checkpointing": False,
        "generate.max_new_tokens": 512,
    },
}
