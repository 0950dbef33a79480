"""A directory (see `model_files.py`) -> its configuration, tokenizer and network, as the project wants them.

Opens nothing itself: every file goes through `pretrained.py`. A checkpoint that leaves parameters without a value is an
error: transformers initializes them at random and only warns. Does not choose the attention for training or scoring
(`attention.py`), and knows nothing of peft (`adapters.py`) and of encoders (`selection/embed.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from codetune.data.chat import chat_template
from codetune.data.control_tokens import control_tokens
from codetune.data.tokens import adds_bos
from codetune.errors import ModelError, first_line
from codetune.launch.devices import choose_device, keep_freed_memory
from codetune.model.attention import FLASH, KERNELS, AttentionSpec, require_kernel
from codetune.model.file_check import ADAPTER_CONFIG, read_json
from codetune.model.model_files import (
    base_model_directory,
    base_model_name,
    find_model,
    resized,
    tokenizer_directory,
)
from codetune.model.pretrained import (
    build_network,
    build_outline,
    read_configuration,
    read_generation_config,
    read_network,
    read_tokenizer,
    splits_as_its_file,
)
from codetune.project.sections import ChatFormat, Model, Quantization

PROBE = "Write `f(x)`.\n\ndef f(x):\n\treturn x + 1  # caf\u00e9\n"  # words, code, white space, a non-ASCII letter
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
# None: transformers chooses sdpa where the architecture has it. `flash` and `varlen` are set on the loaded network.
IMPLEMENTATIONS = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flash": None, "varlen": None}


def load_configuration(path: Path) -> PreTrainedConfig:
    """The configuration of a model; for adapters that of their base model. Raises ModelError if it cannot be read."""
    return read_configuration(base_model_directory(path))


def load_generation_config(path: Path) -> GenerationConfig | None:
    """The generation configuration in the directory, None if it has none."""
    if not (path / "generation_config.json").is_file():
        return None
    return read_generation_config(path)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; for adapters without one that of their base model. It adds a BOS if its configuration
    says so. Raises ModelError if it cannot be read, is a slow one (without character offsets), or has tokens that the
    model has no embeddings for."""
    path = tokenizer_directory(path)
    settings = read_json(path / "tokenizer_config.json")
    # Some backends of transformers 5 do not read it from the file (DeepSeek-Coder's); all accept it as an argument.
    options: dict[str, Any] = {key: settings[key] for key in ("add_bos_token",) if settings.get(key) is not None}
    tokenizer = read_tokenizer(path, **options)
    if not getattr(tokenizer, "is_fast", False):  # some classes lack it
        raise ModelError(
            f"The tokenizer in {path} is a slow one, which gives no character offsets. Expected: a tokenizer.json. "
            "Load it once with transformers and save it: AutoTokenizer(...).save_pretrained(...)"
        )
    # transformers 5.17 builds DeepSeek-Coder's (byte-level BPE, by its configuration a LlamaTokenizerFast) as a
    # SentencePiece one: other tokens, no warning.
    if not splits_as_its_file(tokenizer, path, PROBE):
        tokenizer = read_tokenizer(path, plain=True, **options)
    _require_embeddings(tokenizer, path)
    return tokenizer


def load_trained_tokenizer(path: Path, source: Path, chat_format: ChatFormat | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `path`. A checkpoint (`path` is not `source`) has none: it gets that of `source`
    with the chat template of its training."""
    tokenizer = load_tokenizer(source)
    if path != source and chat_format and chat_format != "tokenizer":
        tokenizer.chat_template = chat_template(chat_format, with_bos=adds_bos(tokenizer))
    return tokenizer


def _require_embeddings(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Raises ModelError where a text can give a token beyond the embeddings of the model. No text gives a control token
    (`control_tokens.py`), such as a padding token that was added to the tokenizer alone."""
    if not (base_model_directory(path) / "config.json").is_file():
        return  # a tokenizer by itself
    known = getattr(load_configuration(path).get_text_config(), "vocab_size", None)
    if known is None or max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder, 0) < known:
        return
    unused = control_tokens(tokenizer).texts - {tokenizer.bos_token, tokenizer.eos_token}
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= known and token not in unused}
    if beyond:
        first = min(beyond, key=lambda token: beyond[token])
        found = f"a tokenizer with the token {beyond[first]:,} ({first!r})"
        raise resized(path, found, known, max(beyond.values()) + 1)


def load_model(path: Path, model: Model, device: str) -> PreTrainedModel:
    """The network on `device`, in evaluation mode, in `model.dtype`, with adapters merged into its weights. Raises
    ModelError for files that do not make a whole model, and for an attention that cannot work on the device."""
    if (path / ADAPTER_CONFIG).is_file():
        from codetune.model.adapters import merge_saved_adapters  # peft takes seconds to import

        base = load_model(find_model(base_model_name(path)), model, device)
        merged = merge_saved_adapters(base, path, device)
        # Its EOS tokens were learned together with the adapters.
        merged.generation_config = load_generation_config(path) or merged.generation_config
        return merged
    if choose_device() == "cpu":  # not if the weights only pass through the CPU's memory
        keep_freed_memory()
    on_device: PreTrainedModel = _from_pretrained(path, model).to(device)  # type: ignore[arg-type]
    return _with_attention(on_device, model)


def uninitialized_model(path: Path, model: Model) -> PreTrainedModel:
    """The network as `load_model` gives it on a CPU, with arbitrary values as weights: for a process that receives its
    part of them from another one."""
    config = load_configuration(path)
    dtype = config.dtype if model.dtype == "auto" else DTYPES[model.dtype]
    network = build_network(config, dtype=dtype, attn_implementation=IMPLEMENTATIONS[model.attention])
    network.tie_weights()
    network.train(False)
    return network


def load_model_shard(path: Path, model: Model, count: int) -> PreTrainedModel:
    """This process's shard of a network that is split over the `count` processes of the default process group (tensor
    parallelism), on its GPU or in the CPU's memory. Raises ModelError if transformers cannot split it."""
    options = {"distributed_config": DistributedConfig(tp_size=count)}
    try:
        return _with_attention(_from_pretrained(path, model, **options), model)
    except ModelError as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        raise ModelError(  # transformers 5.17 splits no output layer with a remainder, 5.23 does
            f"transformers does not divide the model in {path} over {count} processes "
            f"({first_line(error.__cause__)}). Expected: sizes that their number divides. Set launch.processes to "
            "another number, or install the extra vllm and set generate.backend: vllm"
        ) from error


def load_quantized_model(path: Path, model: Model, device: str, quantization: Quantization) -> PreTrainedModel:
    """The network on `device` with its linear layers, except the output layer, quantized to 4 or 8 bits while they are
    read. All other weights, and the arithmetic, are in `model.dtype`. Raises ModelError without bitsandbytes, and for
    adapters: they can be merged only into weights that are not quantized."""
    require_bitsandbytes()
    if (path / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{path} holds adapters, which cannot be merged into a quantized base model. Expected: a whole model. Set "
            f"train.method: lora, or model.path to the base model ({base_model_name(path)})."
        )
    settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=quantization.bits == 4,
        load_in_8bit=quantization.bits == 8,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=DTYPES[model.dtype],
    )
    network = _from_pretrained(path, model, quantization_config=settings, device_map={"": device})
    return _with_attention(network, model)


def require_bitsandbytes() -> None:
    if not is_bitsandbytes_available():
        raise ModelError(
            "The base model is to be quantized, and bitsandbytes is not installed. Expected: the package that does it. "
            "Install it: pip install bitsandbytes. Or set train.method: lora"
        )


def outline_of(path: Path) -> PreTrainedModel:
    """The network that the configuration describes, without adapters and without memory for weights. Reads none."""
    return build_outline(load_configuration(path))


def count_parameters(path: Path) -> int:
    """The number of parameters that the configuration in the directory describes."""
    return sum(weights.numel() for weights in outline_of(path).parameters())


def _from_pretrained(path: Path, model: Model, **options: object) -> PreTrainedModel:
    network, info = read_network(
        path, dtype=DTYPES[model.dtype], attn_implementation=IMPLEMENTATIONS[model.attention], **options
    )
    unfilled = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if unfilled:
        raise ModelError(
            f"The weights in {path} leave {len(unfilled)} parameters unfilled ({', '.join(unfilled[:3])}). Expected: "
            "every parameter of config.json with its shape. Copy or download the model again."
        )
    return network


def _with_attention(network: PreTrainedModel, model: Model) -> PreTrainedModel:
    """The network in evaluation mode, with the kernel of flash-attn if the project asks for it. `varlen` is for packed
    rows only and is set by the code that packs them; until then the network has sdpa."""
    network.train(False)
    if model.attention in KERNELS:
        require_kernel(model.attention, AttentionSpec.of(network, str(network.dtype).removeprefix("torch.")))
    if model.attention == "flash":
        network.set_attn_implementation(FLASH)
    return network
