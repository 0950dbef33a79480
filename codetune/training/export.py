"""The trained model -> a directory that transformers loads: safetensors in `model.dtype`, the tokenizer with the chat
template of the training, and a generation configuration with the tokens that end an answer. Never connects to a Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from codetune.data.chat import chat_template, stop_strings
from codetune.data.tokens import adds_bos
from codetune.model.adapters import base_network, cast_weights, merge_trained_adapters, quiet_peft
from codetune.model.attention import set_default_attention
from codetune.model.model_files import tokenizer_directory
from codetune.project.sections import ChatFormat, Precision, Project
from codetune.store.run_directory import MERGED_ADAPTERS

SENTENCEPIECE = "tokenizer.model"  # the vocabulary as SentencePiece writes it


def export_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    project: Project,
    precision: Precision,
    answer_end_tokens: frozenset[int],
    base: Path,
    saved: Path,
) -> None:
    """Rounds the weights in place, so the model cannot be trained afterwards. With `train.merge` the adapters
    are saved as well, in `adapter/` below the merged model. `answer_end_tokens` are the last tokens of the answers in
    training, `base` is the directory of the base model. For a full disk raises OSError, SafetensorError, or the
    Exception of tokenizers."""
    network, dtype = base_network(model), getattr(torch, precision)
    chat_format = project.model.chat_format
    assert chat_format is not None  # found before the work began
    set_default_attention(network)
    network.config.use_cache = True
    network.generation_config = trained_generation_config(tokenizer, chat_format, answer_end_tokens)
    if not isinstance(model, PeftModel):
        cast_weights(model, dtype)
        model.save_pretrained(saved)
    elif project.train.merge:
        _save_adapters(model, saved / MERGED_ADAPTERS, dtype)
        merge_trained_adapters(model, dtype).save_pretrained(saved)
    else:
        _save_adapters(model, saved, dtype)
        network.generation_config.save_pretrained(saved)
    if chat_format != "tokenizer":
        tokenizer.chat_template = chat_template(chat_format, with_bos=adds_bos(tokenizer))
    tokenizer.save_pretrained(saved)
    # transformers reads tokenizer.json and leaves this out; llama.cpp converts such tokenizers from this file alone.
    if (pieces := tokenizer_directory(base) / SENTENCEPIECE).is_file():
        shutil.copyfile(pieces, saved / SENTENCEPIECE)


def _save_adapters(model: PeftModel, directory: Path, dtype: torch.dtype) -> None:
    for weights in model.parameters():
        if weights.requires_grad:  # the others may be quantized
            weights.data = weights.data.to(dtype)
    with quiet_peft():
        # "auto" would ask the Hub whether the vocabulary grew; codetune never resizes the embeddings.
        model.save_pretrained(str(directory), save_embedding_layers=False)


def trained_generation_config(
    tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, answer_end_tokens: frozenset[int]
) -> GenerationConfig:
    """Generation stops at EOS, at `answer_end_tokens`, and at the chat format's end of turn where that is one token."""
    vocabulary = tokenizer.get_vocab()
    stops = {vocabulary[text] for text in stop_strings(chat_format) if text in vocabulary}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *stops, *answer_end_tokens} - {None}),
        pad_token_id=padding,
    )
