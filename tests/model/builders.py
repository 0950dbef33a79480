"""Small random networks and tokenizers, built in milliseconds, for the tests of every room."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Starcoder2Config,
)

TEXT = ["def add(a, b):\n    return a + b\n", "Question:\nAdd two numbers.\n\nAnswer:\n", "print('hello, world')"]
ARCHITECTURES = ("llama", "qwen2", "starcoder2", "gemma")
CHANGED_LOGITS = ("gemma2", "cohere", "granite")  # capped or scaled after the output layer


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
    architecture: str, vocabulary: int, *, seed: int = 0, hidden: int = 64, layers: int = 2, tied: bool | None = None
) -> PreTrainedModel:
    """A random float32 network of the architecture, with weights large enough that its predictions differ. `tied` says
    whether head and embeddings share their weights; None leaves it to the architecture."""
    torch.manual_seed(seed)
    config = _config(architecture, vocabulary, hidden, layers)
    if tied is not None:
        config.tie_word_embeddings = tied
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weights in network.parameters():
            if weights.dim() == 2:
                weights.normal_(0, 0.08)
    return network


def model_with(architecture: str, attention: str) -> PreTrainedModel:
    model = tiny_model(architecture, 100)
    model.set_attn_implementation(attention)
    return model


def _config(architecture: str, vocabulary: int, hidden: int, layers: int) -> PretrainedConfig:
    kinds = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "starcoder2": Starcoder2Config,
        "gemma": GemmaConfig,
        "gemma2": Gemma2Config,  # at most 30
        "cohere": CohereConfig,  # a sixteenth
        "granite": partial(GraniteConfig, logits_scaling=4.0),
    }
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


def documented_varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """A reference implementation of what torch documents of its kernel, which runs on GPUs only."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert query.shape[1] == key.shape[1] or enable_gqa
    assert window_size[1] == 0
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for first, last in pairwise(cu_seq_q.tolist()):
        q, k, v = (states[first:last].transpose(0, 1) for states in (query, key, value))  # [H, T, D]
        back = torch.arange(last - first)[:, None] - torch.arange(last - first)
        seen = (back >= 0) & ((window_size[0] == -1) | (back <= window_size[0]))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        outputs.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)
