"""A model's name -> its directory, tokenizer and network.

Reads weights from safetensors only and runs no code that comes with a model. A checkpoint that leaves parameters
unfilled is an error: transformers would draw them at random and only warn. Choosing and registering attention for
training is `attention.py`; adapters are made, and merged into the model below them, in `adapt.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
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
from transformers.utils.import_utils import is_bitsandbytes_available

from codetune.data.chat import template
from codetune.data.hub import hub_snapshot, is_hub_id
from codetune.data.tokens import adds_bos
from codetune.errors import CodetuneError, ModelError
from codetune.model.attention import FLASH, KERNELS, Site, require_kernel
from codetune.model.memory import keep_freed_memory
from codetune.project import ChatFormat, Model, Quantization

HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors", "adapter_model.safetensors")
ENCODER_FILES = ("*.json", "*.txt", "*.model", "*model.safetensors")
PROBE = "Write `f(x)`.\n\ndef f(x):\n\treturn x + 1  # caf\u00e9\n"  # words, code, white space and beyond ASCII
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
# None lets transformers choose: sdpa where the architecture has it. What needs a kernel is set on the loaded network.
ATTENTION = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flash": None, "varlen": None}


def find_model(name: str) -> Path:
    """The directory of a model that can be loaded: `name` itself, else the hub's snapshot of it."""
    directory = find_directory(name, HUB_FILES)
    _require_loadable(directory, name)
    return directory


def find_directory(name: str, hub_files: Sequence[str]) -> Path:
    """`name` where it is a directory, else the hub's snapshot of those files; what they hold is not looked at."""
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise ModelError(
            f"{name} is a file. Expected: the directory that holds config.json and the weights of a model, or a hub "
            "id. Name the directory."
        )
    if not is_hub_id(name):
        raise ModelError(
            f"There is no directory {name}. Expected: the directory of a model, or a hub id such as "
            "deepseek-ai/deepseek-coder-6.7b-base. Mend the name where it is given: project file or --model."
        )
    return hub_snapshot(name, "model", hub_files)


def find_encoder(name: str) -> Path:
    """The directory of a sentence-transformers model: `name` itself, else the hub's snapshot of it."""
    directory = find_directory(name, ENCODER_FILES)
    _require_safe_encoder(directory, name)
    return directory


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, adding a BOS where its own configuration asks for one."""
    settings = _read_json(path / "tokenizer_config.json")
    # Not every backend of transformers 5 reads it from the file (DeepSeek-Coder's does not), all take it as argument.
    asked = {key: settings[key] for key in ("add_bos_token",) if settings.get(key) is not None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **asked)
    except (OSError, ValueError, KeyError) as why:
        raise ModelError(
            f"The tokenizer in {path} cannot be read ({type(why).__name__}: {_first_line(why)}). Expected: the "
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
    tokenizer.chat_template = template(chat_format, with_bos=adds_bos(tokenizer))
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
    if (path / ADAPTER).is_file():
        from codetune.model.adapt import merge_adapters  # peft takes seconds to load, and few models have adapters

        below = load_model(find_model(base_of_adapters(path)), model, device)
        merged = merge_adapters(below, path, device)
        if (path / "generation_config.json").is_file():  # where an answer ends was learned with the adapters
            merged.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        return merged
    if device == "cpu":
        keep_freed_memory()
    on_device: PreTrainedModel = _read_network(path, model, {}).to(device)  # type: ignore[arg-type]
    return _attending(on_device, model)


def load_model_part(path: Path, model: Model, count: int) -> PreTrainedModel:
    """What each of `count` processes, which have met, holds of one network, on its GPU or in the CPU's memory."""
    try:
        return _attending(_read_network(path, model, {"distributed_config": DistributedConfig(tp_size=count)}), model)
    except ModelError as why:
        if not isinstance(why.__cause__, ValueError):
            raise
        raise ModelError(  # transformers 5.17 divides no output layer with a remainder, 5.23 does
            f"transformers does not divide the model in {path} over {count} processes ({_first_line(why.__cause__)}). "
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
    try:
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
    except (OSError, ValueError, RuntimeError, SafetensorError) as why:
        raise ModelError(
            f"The model in {path} cannot be loaded ({type(why).__name__}: {_first_line(why)}). Expected: a config.json "
            "and whole safetensors files that fit it. Copy or download the model again."
        ) from why
    network: PreTrainedModel = loaded[0]
    _require_complete(loaded[1], path)
    return network


def _attending(network: PreTrainedModel, model: Model) -> PreTrainedModel:
    """In evaluation mode, with the attention asked for where that needs a kernel."""
    network.train(False)
    if model.attention in KERNELS:
        require_kernel(model.attention, Site.of(network, str(network.dtype).removeprefix("torch.")))
    # torch's variable-length attention is for flat rows, and set by whoever lays them; elsewhere it is sdpa.
    if model.attention == "flash":
        network.set_attn_implementation(FLASH)
    return network


def count_parameters(path: Path) -> int:
    """Of the network that the configuration describes; no weights are read."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(weights.numel() for weights in network.parameters())


def gpu_memory_bytes() -> int | None:
    """Of the GPU that this process works on; None where there is none."""
    return torch.cuda.get_device_properties(choose_device()).total_memory if torch.cuda.is_available() else None


def base_of_adapters(directory: Path) -> str:
    """The model that adapters belong to: a path or a hub id."""
    said = _read_json(directory / ADAPTER).get("base_model_name_or_path")
    if not said or not isinstance(said, str) or Path(said).expanduser().resolve() == directory.resolve():
        raise ModelError(
            f"{directory / ADAPTER} does not say to which model the adapters belong (base_model_name_or_path is "
            f"{said!r}). Expected: its directory or hub id. Write it there."
        )
    return said


def choose_device() -> str:
    """The GPU that this process was given (see `take_gpu`), or the CPU where there is none."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def take_gpu(number: int) -> None:
    """From here on the process works on the GPU of that number, counted over those that are visible."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def count_gpus() -> int:
    return torch.cuda.device_count()


def _require_loadable(directory: Path, name: str) -> None:
    if (directory / ADAPTER).is_file():
        _require_adapters(directory, name)
        return
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{_shown(name, directory)} holds no config.json. Expected: the directory of a model as transformers saves "
            "it. Mend model.path or --model."
        )
    _require_safetensors(directory, name)
    _require_no_remote_code(directory, name)


def _require_adapters(directory: Path, name: str) -> None:
    if not (directory / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{_shown(name, directory)} has an {ADAPTER} and no adapter_model.safetensors. Expected: both, as peft "
            "saves them. Copy them there again; adapters in a pickle must be loaded with peft and saved once more."
        )
    base = base_of_adapters(directory)
    try:
        find_model(base)
    except CodetuneError as why:
        raise type(why)(f"{_shown(name, directory)} are adapters of {base}. {why}") from why


def _require_safetensors(directory: Path, name: str) -> None:
    if (directory / "model.safetensors").is_file():
        return
    shards = sorted(set(_read_json(directory / "model.safetensors.index.json").get("weight_map", {}).values()))
    absent = [shard for shard in shards if not (directory / shard).is_file()]
    if shards and not absent:
        return
    if shards:
        raise ModelError(
            f"{_shown(name, directory)} lacks {len(absent)} of its {len(shards)} weight files: "
            f"{', '.join(absent[:3])}. Expected: all that its index names. Copy them there, or "
            "download the model again."
        )
    if any(found for pattern in PICKLES for found in directory.glob(pattern)):
        raise ModelError(
            f"{_shown(name, directory)} has pickle weights only. Expected: safetensors, because reading a pickle "
            f"can run code. Convert it, if you trust its source: {conversion_command(directory)}"
        )
    raise ModelError(
        f"{_shown(name, directory)} holds no weights. Expected: model.safetensors, or its parts and their index. "
        "Copy them there; a model that the hub has as pickle files only must be downloaded whole and converted to "
        "safetensors."
    )


def _shown(name: str, directory: Path) -> str:
    """A hub id together with the directory of its snapshot; a directory once."""
    return name if Path(name).expanduser() == directory else f"{name} ({directory})"


def conversion_command(directory: Path) -> str:
    """A shell command that writes the model beside itself as safetensors, with its tokenizer."""
    program = (
        "import sys, transformers as t; old, new = sys.argv[1:]; "
        "t.AutoModelForCausalLM.from_pretrained(old, use_safetensors=False, dtype='auto').save_pretrained(new); "
        "t.AutoTokenizer.from_pretrained(old).save_pretrained(new)"
    )
    return f'python -c "{program}" {directory} {directory}-safetensors'


def _require_safe_encoder(directory: Path, location: str) -> None:
    listed = directory / "modules.json"
    modules = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else [{"path": ""}]
    for part in (directory / module["path"] for module in modules):
        if any(part.glob("*.bin")) and not any(part.glob("*.safetensors")):
            raise ModelError(
                f"{location} has pickle weights only ({part}). Expected: safetensors, because reading a pickle can run "
                'code. Convert it, if you trust its source: python -c "import sys, sentence_transformers as s; '
                f's.SentenceTransformer(sys.argv[1]).save(sys.argv[1] + "-safetensors")" {directory}'
            )


def _require_no_remote_code(directory: Path, name: str) -> None:
    settings = _read_json(directory / "config.json")
    # Where transformers knows the architecture itself, it leaves the code in the directory alone.
    if settings.get("auto_map") and settings.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"{_shown(name, directory)} is of the type {settings.get('model_type')!r}, which needs Python code that "
            "comes with the model (config.json: auto_map). Expected: an architecture that transformers knows; this "
            "version runs no remote code. Choose another model."
        )


def _require_complete(report: Mapping[str, Any], path: Path) -> None:
    unfilled = sorted({*report["missing_keys"], *(str(mismatch[0]) for mismatch in report["mismatched_keys"])})
    if unfilled:
        raise ModelError(
            f"The weights in {path} leave {len(unfilled)} parameters unfilled ({', '.join(unfilled[:3])}). Expected: "
            "every parameter of config.json with its shape. Copy or download the model again."
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as why:
        raise ModelError(
            f"{path} is not JSON ({_first_line(why)}). Expected: the file as it was saved. Copy it again."
        ) from why
    return content if isinstance(content, dict) else {}


def _first_line(why: Exception) -> str:
    return str(why).partition("\n")[0]
