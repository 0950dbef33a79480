"""A directory (see `model_files.py`) -> its configuration, tokenizer and network. Every one that codetune loads comes
through here, but for encoders (`selection/embed.py`).

Reads weights from safetensors only, asks no hub and runs no code that comes with a model. A checkpoint that leaves
parameters without a value is an error: transformers initializes them at random and only warns. Does not choose the
attention for training or scoring (`attention.py`), and knows nothing of peft (`adapters.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
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
from codetune.launch.devices import choose_device, keep_freed_memory
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

PROBE = "Write `f(x)`.\n\ndef f(x):\n\treturn x + 1  # caf\u00e9\n"  # words, code, white space, a non-ASCII letter
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
# None: transformers chooses sdpa where the architecture has it. `flash` and `varlen` are set on the loaded network.
IMPLEMENTATIONS = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flash": None, "varlen": None}


class _LoadingInfo(TypedDict):
    """The part that is used of what `from_pretrained` reports."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, object, object]]  # name, shape in the file, shape in the network


def load_configuration(path: Path) -> PreTrainedConfig:
    """The configuration of a model; for adapters that of their base model. Raises ModelError if it cannot be read."""
    path = base_model_directory(path)
    with _named_errors(path):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return config


def load_generation_config(path: Path) -> GenerationConfig | None:
    """The generation configuration in the directory, None if it has none."""
    if not (path / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(path, local_files_only=True)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; for adapters without one that of their base model. It adds a BOS if its configuration
    says so. Raises ModelError if it cannot be read, or is a slow one (without character offsets)."""
    path = tokenizer_directory(path)
    settings = read_json(path / "tokenizer_config.json")
    # Some backends of transformers 5 do not read it from the file (DeepSeek-Coder's); all accept it as an argument.
    options: dict[str, Any] = {key: settings[key] for key in ("add_bos_token",) if settings.get(key) is not None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The tokenizer in {path} cannot be read ({type(error).__name__}: {first_line(error)}). Expected: the "
            "tokenizer.json and tokenizer_config.json that belong to the model. Copy them there from its source."
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer in {path} is a slow one, which gives no character offsets. Expected: a tokenizer.json. "
            "Load it once with transformers and save it: AutoTokenizer(...).save_pretrained(...)"
        )
    if _splits_as_its_file(tokenizer, path):
        return tokenizer
    plain: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True, **options)
    return plain


def load_trained_tokenizer(path: Path, source: Path, chat_format: ChatFormat | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `path`. A checkpoint (`path` is not `source`) has none: it gets that of `source`
    with the chat template of its training."""
    tokenizer = load_tokenizer(source)
    if path != source and chat_format and chat_format != "tokenizer":
        tokenizer.chat_template = chat_template(chat_format, with_bos=adds_bos(tokenizer))
    return tokenizer


def _splits_as_its_file(tokenizer: PreTrainedTokenizerBase, path: Path) -> bool:
    """Whether the tokenizer splits text as its tokenizer.json says. transformers 5.17 builds DeepSeek-Coder's
    (byte-level BPE, by its configuration a LlamaTokenizerFast) as a SentencePiece one: other tokens, no warning."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return True
    expected = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
    return list(tokenizer(PROBE, add_special_tokens=False)["input_ids"]) == expected


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
    part of them from another one. Allocated memory that is never written takes no physical memory."""
    config = load_configuration(path)
    dtype = config.dtype if model.dtype == "auto" else DTYPES[model.dtype]
    with no_init_weights():
        network = _from_config(config, dtype=dtype, attn_implementation=IMPLEMENTATIONS[model.attention])
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
    read. All other weights, and the arithmetic, are in `model.dtype`. Raises ModelError without bitsandbytes."""
    require_bitsandbytes()
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


def count_parameters(path: Path) -> int:
    """The parameters of the network that the configuration describes, without adapters. Reads no weights."""
    config = load_configuration(path)
    with _named_errors(path), torch.device("meta"):
        return sum(weights.numel() for weights in _from_config(config).parameters())


def _from_config(config: PreTrainedConfig, **options: object) -> PreTrainedModel:
    network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, trust_remote_code=False, **options
    )
    return network


def _from_pretrained(path: Path, model: Model, **options: object) -> PreTrainedModel:
    with _named_errors(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[model.dtype],
            attn_implementation=IMPLEMENTATIONS[model.attention],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    network: PreTrainedModel = loaded[0]
    info: _LoadingInfo = loaded[1]
    unfilled = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if unfilled:
        raise ModelError(
            f"The weights in {path} leave {len(unfilled)} parameters unfilled ({', '.join(unfilled[:3])}). Expected: "
            "every parameter of config.json with its shape. Copy or download the model again."
        )
    return network


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    # torch asserts, for example, that the embeddings have the padding token.
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        raise ModelError(
            f"The model in {path} cannot be loaded ({type(error).__name__}: {first_line(error)}). Expected: a "
            "config.json and whole safetensors files that fit it. Copy or download the model again."
        ) from error


def _with_attention(network: PreTrainedModel, model: Model) -> PreTrainedModel:
    """The network in evaluation mode, with the kernel of flash-attn if the project asks for it. `varlen` is for packed
    rows only and is set by the code that packs them; until then the network has sdpa."""
    network.train(False)
    if model.attention in KERNELS:
        require_kernel(model.attention, AttentionSpec.of(network, str(network.dtype).removeprefix("torch.")))
    if model.attention == "flash":
        network.set_attn_implementation(FLASH)
    return network
