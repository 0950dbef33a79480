"""A model's directory (see `find.py`) -> its tokenizer and network.

Reads weights from safetensors only and runs no code that comes with a model. A checkpoint that leaves parameters
unfilled is an error: transformers would draw them at random and only warn. Choosing and registering attention for
training is `attention.py`; adapters are made, and merged into the model below them, in `adapt.py`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.initialization import no_init_weights
from transformers.utils.import_utils import is_bitsandbytes_available

from codetune.data.chat import chat_template
from codetune.data.tokens import adds_bos
from codetune.errors import ModelError, first_line
from codetune.launch.devices import choose_device
from codetune.model.attention import FLASH, KERNELS, AttentionSpec, require_kernel
from codetune.model.model_files import (
    ADAPTER_CONFIG,
    base_model_directory,
    base_model_name,
    find_model,
    read_json,
    tokenizer_directory,
)
from codetune.project.sections import ChatFormat, Model, Quantization

PROBE = "Write `f(x)`.\n\ndef f(x):\n\treturn x + 1  # caf\u00e9\n"  # words, code, white space and beyond ASCII
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
# None lets transformers choose: sdpa where the architecture has it. What needs a kernel is set on the loaded network.
ATTENTION = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flash": None, "varlen": None}

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, adding a BOS where its own configuration asks for one; of adapters without one that of the model
    below them."""
    path = tokenizer_directory(path)
    settings = read_json(path / "tokenizer_config.json")
    # Not every backend of transformers 5 reads it from the file (DeepSeek-Coder's does not), all take it as argument.
    asked = {key: settings[key] for key in ("add_bos_token",) if settings.get(key) is not None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **asked)
    except (OSError, ValueError, KeyError) as why:
        raise ModelError(
            f"The tokenizer in {path} cannot be read ({type(why).__name__}: {first_line(why)}). Expected: the "
            "tokenizer.json and tokenizer_config.json that belong to the model. Copy them there from its source."
        ) from why
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer in {path} is of the slow kind, which cannot say where a token's characters lie. Expected: "
            "a tokenizer.json. Load it once with transformers and save it: AutoTokenizer(...).save_pretrained(...)"
        )
    return tokenizer if _is_faithful(tokenizer, path) else _plain_tokenizer(path, asked)


def load_trained_tokenizer(path: Path, source: Path, chat_format: ChatFormat | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `path`; a checkpoint has none, so it gets that of `source` with the chat template
    of its training."""
    if path == source or not chat_format or chat_format == "tokenizer":
        return load_tokenizer(source)
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = chat_template(chat_format, with_bos=adds_bos(tokenizer))
    return tokenizer


def _is_faithful(tokenizer: PreTrainedTokenizerBase, path: Path) -> bool:
    """Whether it splits text as its tokenizer.json says. transformers 5.17 builds DeepSeek-Coder's (ByteLevel, by its
    configuration a LlamaTokenizerFast) as a SentencePiece one, with other tokens and without a word."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return True
    expected = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
    return list(tokenizer(PROBE, add_special_tokens=False)["input_ids"]) == expected


def _plain_tokenizer(path: Path, asked: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    plain: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True, **asked)
    return plain


def load_model(path: Path, model: Model, device: str) -> PreTrainedModel:
    """The network on `device`, in evaluation mode, in `model.dtype`; of adapters the model below them with the adapters
    merged into its weights."""
    if (path / ADAPTER_CONFIG).is_file():
        from codetune.model.adapters import (
            merge_saved_adapters,  # peft takes seconds to load, and few models have adapters
        )

        below = load_model(find_model(base_model_name(path)), model, device)
        merged = merge_saved_adapters(below, path, device)
        if (path / "generation_config.json").is_file():  # where an answer ends was learned with the adapters
            merged.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        return merged
    if choose_device() == "cpu":  # and not where weights only pass through the CPU's memory
        keep_freed_memory()
    on_device: PreTrainedModel = _read_network(path, model, {}).to(device)  # type: ignore[arg-type]
    return _attending(on_device, model)


def uninitialized_model(path: Path, model: Model) -> PreTrainedModel:
    """The network as `load_model` would give it to a CPU, but for its weights, which are whatever is there: for a
    process that is handed a part of them. Memory that is not written to is not taken either."""
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    dtype = config.dtype if model.dtype == "auto" else DTYPES[model.dtype]
    with no_init_weights():
        network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=ATTENTION[model.attention]
        )
    network.tie_weights()
    network.train(False)
    return network


def load_model_shard(path: Path, model: Model, count: int) -> PreTrainedModel:
    """What each of `count` processes, which have met, holds of one network, on its GPU or in the CPU's memory."""
    try:
        return _attending(_read_network(path, model, {"distributed_config": DistributedConfig(tp_size=count)}), model)
    except ModelError as why:
        if not isinstance(why.__cause__, ValueError):
            raise
        raise ModelError(  # transformers 5.17 divides no output layer with a remainder, 5.23 does
            f"transformers does not divide the model in {path} over {count} processes ({first_line(why.__cause__)}). "
            "Expected: sizes that their number divides. Set launch.processes to another number, or install the extra "
            "vllm and set generate.backend: vllm"
        ) from why


def load_quantized_model(path: Path, model: Model, device: str, quantization: Quantization) -> PreTrainedModel:
    """The network on `device` with the weights of its linear layers (but the output layer's) in 4 or 8 bits, which are
    made as they are read; the others, and the arithmetic, are in `model.dtype`."""
    if not is_bitsandbytes_available():
        raise ModelError(
            "The base model is to be quantised, and bitsandbytes is not installed. Expected: the package that does it. "
            "Install it: pip install bitsandbytes. Or set train.method: lora"
        )
    settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=quantization.bits == 4,
        load_in_8bit=quantization.bits == 8,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=DTYPES[model.dtype],
    )
    return _attending(_read_network(path, model, {"quantization_config": settings, "device_map": {"": device}}), model)


def _read_network(path: Path, model: Model, more: Mapping[str, Any]) -> PreTrainedModel:
    with _reading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[model.dtype],
            attn_implementation=ATTENTION[model.attention],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
    network: PreTrainedModel = loaded[0]
    _require_complete(loaded[1], path)
    return network


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    # Of assertions torch's own: such as of a padding token that the embeddings do not have.
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as why:
        raise ModelError(
            f"The model in {path} cannot be loaded ({type(why).__name__}: {first_line(why)}). Expected: a config.json "
            "and whole safetensors files that fit it. Copy or download the model again."
        ) from why


def _attending(network: PreTrainedModel, model: Model) -> PreTrainedModel:
    """In evaluation mode, with the attention asked for where that needs a kernel."""
    network.train(False)
    if model.attention in KERNELS:
        require_kernel(model.attention, AttentionSpec.of(network, str(network.dtype).removeprefix("torch.")))
    # torch's variable-length attention is for flat rows, and set by whoever lays them; elsewhere it is sdpa.
    if model.attention == "flash":
        network.set_attn_implementation(FLASH)
    return network


def count_parameters(path: Path) -> int:
    """Of the network that the configuration describes, without adapters; no weights are read."""
    with _reading(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(base_model_directory(path), local_files_only=True)
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(weights.numel() for weights in network.parameters())


def keep_freed_memory() -> None:
    """Lets the C library keep what large tensors leave behind for those that follow. Else it goes back to the system at
    the end of each, and comes anew page by page: logits and their softmax over 32,256 entries took a third longer, and
    whole scoring a fifth. Does nothing where there is another C library than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1)


def is_out_of_memory(why: RuntimeError) -> bool:
    # torch's CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return isinstance(why, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(why)


def _require_complete(report: Mapping[str, Any], path: Path) -> None:
    unfilled = sorted({*report["missing_keys"], *(str(mismatch[0]) for mismatch in report["mismatched_keys"])})
    if unfilled:
        raise ModelError(
            f"The weights in {path} leave {len(unfilled)} parameters unfilled ({', '.join(unfilled[:3])}). Expected: "
            "every parameter of config.json with its shape. Copy or download the model again."
        )
