"""The name of a model -> the directory of its files, checked by `file_check.py`.

Reads file names and small JSON files only, so that a wrong name is an error before torch is imported. `load.py` loads
the model from the directory."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from codetune.data.hub import hub_files, hub_snapshot, is_cached, is_hub_id, require_known
from codetune.errors import CodetuneError, ModelError, first_line
from codetune.model.file_check import (
    ADAPTER_CONFIG,
    WEIGHTS,
    encoder_parts,
    read_json,
    require_safe_encoder,
    require_safe_files,
    weight_files,
)

SETTINGS_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
# With the card of the model, which names its licence.
MODEL_FILES = (*SETTINGS_FILES, "README.md", "model*.safetensors", "adapter_model.safetensors")
ENCODER_FILES = ("*.json", "*.txt", "*.model", "*model.safetensors")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
ENCODER_PICKLE = "pytorch_model.bin"
PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_model(name: str) -> Path:
    """The directory of a causal model or of LoRA adapters: `name` itself, or the snapshot of that Hub id.

    Raises ModelError for a name that is neither, for files that are missing, for weights in pickle files, and for files
    that must not be opened. The base model of adapters is checked as well."""
    directory = _find_directory(name, MODEL_FILES)
    require_safe_files(directory)
    if (directory / ADAPTER_CONFIG).is_file():
        _require_adapters(directory, name)
        return directory
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{_shown(name, directory)} holds no config.json. Expected: the directory of a model as transformers saves "
            "it. Fix model.path or --model."
        )
    _require_safetensors(directory, name)
    return directory


def find_encoder(name: str) -> Path:
    """The directory of a sentence-transformers model: `name` itself, or the snapshot of that Hub id. Raises ModelError
    for a name that is neither, for another directory, for weights in pickle files, and for files that must not be
    opened."""
    directory = _find_directory(name, ENCODER_FILES)
    require_safe_encoder(directory)
    if not any((directory / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(
            f"{_shown(name, directory)} holds no modules.json and no config.json. Expected: the directory of a "
            "sentence-transformers model. Fix embed.model."
        )
    for part in encoder_parts(directory):
        if any(part.glob("*.bin")) and not _is_read_from_safetensors(part):
            raise ModelError(
                f"{name} has pickle weights only ({part}). Expected: safetensors, because reading a pickle "
                "can run code. Convert it, if you trust its source: python -c "
                '"import sys, sentence_transformers as s; '
                f's.SentenceTransformer(sys.argv[1]).save(sys.argv[1] + "-safetensors")" {shlex.quote(str(directory))}'
            )
    return directory


def _is_read_from_safetensors(part: Path) -> bool:
    """Whether sentence-transformers finds the safetensors file of a part. Of another name, or in shards that are not
    those of a transformer, it passes over them to `ENCODER_PICKLE`."""
    return (part / WEIGHTS).is_file() or (bool(weight_files(part)) and not (part / ENCODER_PICKLE).exists())


def find_model_files(name: str, scratch: Path) -> Path:
    """The directory of a model's configuration and tokenizer, for work without weights. Those of a Hub id that is not
    in the cache are downloaded into `scratch`: a part of a model in the cache would be taken for a whole one."""
    if _is_to_be_downloaded(name):
        return hub_files(name, "model", SETTINGS_FILES, scratch)
    directory = _find_directory(name, MODEL_FILES)
    require_safe_files(directory)
    return directory


def require_model(name: str, find: Callable[[str], Path] = find_model) -> None:
    """Raises what `find_model`, or `find_encoder`, raises for the name, as far as it can be known without a
    download."""
    if _is_to_be_downloaded(name):
        require_known(name, "model")
    else:
        find(name)


def _is_to_be_downloaded(name: str) -> bool:
    return is_hub_id(name) and not _directory_named(name).exists() and not is_cached(name, "model")


def base_model_directory(directory: Path) -> Path:
    """The directory of the base model under any adapters; `directory` itself if it holds a whole model."""
    *_, base = _with_base_models(directory)
    return base


def count_weights(directory: Path) -> int | None:
    """The numbers in the weight files of a whole model, or of the base model under adapters; reads their headers alone.
    None where they cannot be read: loading the model says why."""
    try:
        return sum(map(_count_numbers, weight_files(base_model_directory(directory)))) or None
    except (SafetensorError, OSError):
        return None


def _count_numbers(path: Path) -> int:
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def tokenizer_directory(directory: Path) -> Path:
    """The directory of a model's tokenizer. Adapters as peft saves them have none and use that of their base model."""
    for place in _with_base_models(directory):
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return place
    return place


def base_model_name(directory: Path) -> str:
    """The path or Hub id of the base model of the adapters in `directory`. Raises ModelError if their configuration
    does not name it."""
    name = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name or not isinstance(name, str) or _directory_named(name).resolve() == directory.resolve():
        raise ModelError(
            f"{directory / ADAPTER_CONFIG} does not say to which model the adapters belong (base_model_name_or_path is "
            f"{name!r}). Expected: its directory or Hub id. Write it there."
        )
    return name


def _with_base_models(directory: Path) -> Iterator[Path]:
    """The directory, then that of the base model of its adapters, and so on to a whole model. Raises ModelError for
    adapters that belong to each other in a circle."""
    seen = [directory.resolve()]
    yield directory
    while (directory / ADAPTER_CONFIG).is_file():
        adapters, directory = directory, _find_directory(base_model_name(directory), MODEL_FILES)
        if directory.resolve() in seen:
            raise ModelError(
                f"{adapters / ADAPTER_CONFIG} names {directory} as base model, and the adapters there belong to "
                "these. Expected: a whole model below all adapters. Fix base_model_name_or_path."
            )
        seen.append(directory.resolve())
        yield directory


def conversion_command(directory: Path) -> str:
    """A shell command that writes the model and its tokenizer as safetensors to `directory`-safetensors."""
    program = (
        "import sys, transformers as t; old, new = sys.argv[1:]; "
        "t.AutoModelForCausalLM.from_pretrained(old, use_safetensors=False, dtype='auto').save_pretrained(new); "
        "t.AutoTokenizer.from_pretrained(old).save_pretrained(new)"
    )
    return f'python -c "{program}" {shlex.quote(str(directory))} {shlex.quote(f"{directory}-safetensors")}'


def resized(directory: Path, found: str, embeddings: int, entries: int) -> ModelError:
    """The error for a tokenizer, or adapters, made for a model with more embeddings than the one that is there has."""
    base = base_model_directory(directory)
    new = f"{base}-resized"
    program = (
        "import sys, transformers as t; base, tokenizer, new = sys.argv[1:]; "
        "m = t.AutoModelForCausalLM.from_pretrained(base, dtype='auto'); "
        f"m.resize_token_embeddings({entries}); m.save_pretrained(new); "
        "t.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(new)"
    )
    command = f'python -c "{program}" {" ".join(shlex.quote(str(path)) for path in (base, directory, new))}'
    named = f"base_model_name_or_path in {directory / ADAPTER_CONFIG}" if base != directory else "model.path"
    return ModelError(
        f"{directory} has {found}, and its model has {embeddings:,} embeddings: tokens were added, and the embeddings "
        f"of this copy of the model were not resized. Expected: an embedding for every token. If the tokens belong to "
        f"the model, resize it ({command}) and set {named} to {new}; if not, put the model's own tokenizer there"
    )


def _find_directory(name: str, hub_files: Sequence[str]) -> Path:
    directory = _directory_named(name)
    if directory.is_dir():
        return directory
    if directory.exists():
        raise ModelError(
            f"{name} is a file. Expected: the directory that holds config.json and the weights of a model, or a Hub "
            "id. Name the directory."
        )
    if not is_hub_id(name):
        raise ModelError(
            f"There is no directory {name}. Expected: the directory of a model, or a Hub id such as "
            "deepseek-ai/deepseek-coder-6.7b-base. Fix the name in the project file or after --model."
        )
    return hub_snapshot(name, "model", hub_files)


def _directory_named(name: str) -> Path:
    """Raises ModelError for text that no path can be: too long, with a null byte, or of a user whom nobody knows."""
    try:
        directory = Path(name).expanduser()
        directory.resolve().is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"The name of a model cannot be a path: {name[:80]!r} ({first_line(error)}). Expected: the directory of a "
            "model, or a Hub id. Fix the name."
        ) from error
    return directory


def _require_adapters(directory: Path, name: str) -> None:
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{_shown(name, directory)} has an {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}. Expected: both, as peft "
            "saves them. Copy them there again; load adapters in a pickle file with peft and save them once more."
        )
    base = base_model_name(directory)
    try:
        base_model_directory(directory)
        find_model(base)
    except CodetuneError as error:
        raise type(error)(f"{_shown(name, directory)} are adapters of {base}. {error}") from error


def _require_safetensors(directory: Path, name: str) -> None:
    shards = weight_files(directory)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(
            f"{_shown(name, directory)} lacks {len(missing)} of its {len(shards)} weight files: "
            f"{', '.join(missing[:3])}. Expected: every file that its index names. Copy them there, or download the "
            "model again."
        )
    if shards:
        return
    if any(any(directory.glob(pattern)) for pattern in PICKLE_FILES):
        raise ModelError(
            f"{_shown(name, directory)} has pickle weights only. Expected: safetensors, because reading a "
            f"pickle can run code. Convert it, if you trust its source: {conversion_command(directory)}"
        )
    raise ModelError(
        f"{_shown(name, directory)} holds no weights. Expected: model.safetensors, or its shards and their index. "
        "Copy them there. If the Hub has this model as pickle files only, download all of it and convert it to "
        "safetensors."
    )


def _shown(name: str, directory: Path) -> str:
    """A Hub id together with the directory of its snapshot; a directory once."""
    return name if Path(name).expanduser() == directory else f"{name} ({directory})"
