"""The trained network -> a directory that transformers loads: safetensors in `model.dtype`, the tokenizer with the chat
template that it was trained with, and a generation configuration that knows where an answer ends. Asks no hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from codetune.data.chat import chat_template, stop_strings
from codetune.data.tokens import adds_bos
from codetune.errors import CodetuneError
from codetune.model.adapters import base_network, cast_weights, merge_trained_adapters
from codetune.model.attention import set_default_attention
from codetune.project.sections import ChatFormat
from codetune.training.arguments import Precision

MERGED_ADAPTERS = "adapter"


@dataclass(frozen=True, slots=True)
class Finish:
    """How a model is saved. `last_tokens` are those that closed an answer in training."""

    chat_format: ChatFormat
    precision: Precision
    merge: bool
    last_tokens: frozenset[int]


def save_trained(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, finish: Finish, saved: Path
) -> None:
    """The model is of no use for training afterwards: its weights are rounded in place. Merged adapters are kept beside
    the whole model, in `adapter/`, where nobody who loads it stumbles over them."""
    network = base_network(model)
    set_default_attention(network)
    network.config.use_cache = True
    network.generation_config = _generation_config(tokenizer, finish.chat_format, finish.last_tokens)
    dtype = getattr(torch, finish.precision)
    try:
        if isinstance(model, PeftModel):
            _save_adapters(model, saved / MERGED_ADAPTERS if finish.merge else saved, dtype)
        if not isinstance(model, PeftModel):
            cast_weights(model, dtype)
            model.save_pretrained(saved)
        elif finish.merge:
            merge_trained_adapters(model, dtype).save_pretrained(saved)
        else:
            network.generation_config.save_pretrained(saved)
    except SafetensorError as why:  # how it reports a full disk
        raise CodetuneError(
            f"{saved} cannot be written ({str(why).partition(chr(10))[0]}). Expected: room for the weights. Make room, "
            "then run again: codetune train (it continues from the last checkpoint)"
        ) from why
    if finish.chat_format != "tokenizer":
        tokenizer.chat_template = chat_template(finish.chat_format, with_bos=adds_bos(tokenizer))
    tokenizer.save_pretrained(saved)


def _save_adapters(model: PeftModel, directory: Path, dtype: torch.dtype) -> None:
    for weights in model.parameters():
        if weights.requires_grad:  # the others may be quantised
            weights.data = weights.data.to(dtype)
    # "auto" would ask the hub whether the vocabulary grew; adapters never change the embeddings here.
    model.save_pretrained(str(directory), save_embedding_layers=False)


def _generation_config(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, last_tokens: frozenset[int]
) -> GenerationConfig:
    """Generation stops at EOS, at what closed the answers, and at the family's end of turn where it is one token."""
    vocabulary = tokenizer.get_vocab()
    stops = {vocabulary[text] for text in stop_strings(chat_format) if text in vocabulary}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *stops, *last_tokens} - {None}),
        pad_token_id=padding,
    )
