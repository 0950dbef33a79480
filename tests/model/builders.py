"""Small random networks and tokenizers, built in milliseconds, for the tests of every room."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Starcoder2Config,
)

TEXT = ["def add(a, b):\n    return a + b\n", "Question:\nAdd two numbers.\n\nAnswer:\n", "print('hello, world')"]
ARCHITECTURES = ("llama", "qwen2", "starcoder2", "gemma")


def byte_tokenizer(*, bos: bool, trim_offsets: bool = False, texts: Sequence[str] = TEXT) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some 300 pieces, trained on `texts`; it never adds a BOS by itself."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*texts, *texts], trainer)
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", **names)


def tiny_model(
    architecture: str, vocabulary: int, *, seed: int = 0, hidden: int = 64, layers: int = 2
) -> PreTrainedModel:
    """A random float32 network of the architecture, with weights large enough that its guesses differ."""
    torch.manual_seed(seed)
    config = _config(architecture, vocabulary, hidden, layers)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weights in network.parameters():
            if weights.dim() == 2:
                weights.normal_(0, 0.08)
    return network


def _config(architecture: str, vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "starcoder2": Starcoder2Config, "gemma": GemmaConfig}
    return kinds[architecture](
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
