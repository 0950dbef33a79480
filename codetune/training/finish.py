"""The trained network -> a directory that transformers loads: safetensors in `model.dtype`, the tokenizer with the chat
template that it was trained with, and a generation configuration that knows where an answer ends. Asks no hub."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from codetune.data.chat import stop_texts, template
from codetune.data.tokens import adds_bos
from codetune.errors import CodetuneError
from codetune.project import ChatFormat
from codetune.training.arguments import Precision


def save_trained(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    precision: Precision,
    last_tokens: frozenset[int],
    saved: Path,
) -> None:
    """`last_tokens` are those that closed an answer in training. The model is of no use for training afterwards: its
    weights are rounded to `precision` in place."""
    network: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    network.set_attn_implementation("sdpa")
    network.config.use_cache = True
    network.generation_config = _generation_config(tokenizer, chat_format, last_tokens)
    model.to(getattr(torch, precision))
    try:
        if isinstance(model, PeftModel):
            # "auto" would ask the hub whether the vocabulary grew; adapters never change the embeddings here.
            model.save_pretrained(str(saved), save_embedding_layers=False)
            network.generation_config.save_pretrained(saved)
        else:
            model.save_pretrained(saved)
    except SafetensorError as why:  # how it reports a full disk
        raise CodetuneError(
            f"{saved} cannot be written ({str(why).partition(chr(10))[0]}). Expected: room for the weights. Make room, "
            "then run again: codetune train (it continues from the last checkpoint)"
        ) from why
    if chat_format != "tokenizer":
        tokenizer.chat_template = template(chat_format, with_bos=adds_bos(tokenizer))
    tokenizer.save_pretrained(saved)


def _generation_config(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, last_tokens: frozenset[int]
) -> GenerationConfig:
    """Generation stops at EOS, at what closed the answers, and at the family's end of turn where it is one token."""
    vocabulary = tokenizer.get_vocab()
    stops = {vocabulary[text] for text in stop_texts(chat_format) if text in vocabulary}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *stops, *last_tokens}),
        pad_token_id=padding,
    )
