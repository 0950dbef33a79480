"""A model's name -> its directory, where what lies there can be loaded: weights in safetensors, no code of its own.
Looks at files only, so that a wrong name is told before torch is loaded; `load.py` loads what is found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codetune.data.hub import hub_snapshot, is_hub_id
from codetune.errors import CodetuneError, ModelError

HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors", "adapter_model.safetensors")
ENCODER_FILES = ("*.json", "*.txt", "*.model", "*model.safetensors")
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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


def base_model_directory(directory: Path) -> Path:
    """The directory of the whole model below adapters; that of a whole model is its own."""
    while (directory / ADAPTER_CONFIG).is_file():
        directory = find_model(base_model_name(directory))
    return directory


def tokenizer_directory(directory: Path) -> Path:
    """Where a model's tokenizer lies: adapters as peft saves them have none, and the model below them has one."""
    while (directory / ADAPTER_CONFIG).is_file() and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        directory = find_model(base_model_name(directory))
    return directory


def base_model_name(directory: Path) -> str:
    """The model that adapters belong to: a path or a hub id."""
    said = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not said or not isinstance(said, str) or Path(said).expanduser().resolve() == directory.resolve():
        raise ModelError(
            f"{directory / ADAPTER_CONFIG} does not say to which model the adapters belong (base_model_name_or_path is "
            f"{said!r}). Expected: its directory or hub id. Write it there."
        )
    return said


def conversion_command(directory: Path) -> str:
    """A shell command that writes the model beside itself as safetensors, with its tokenizer."""
    program = (
        "import sys, transformers as t; old, new = sys.argv[1:]; "
        "t.AutoModelForCausalLM.from_pretrained(old, use_safetensors=False, dtype='auto').save_pretrained(new); "
        "t.AutoTokenizer.from_pretrained(old).save_pretrained(new)"
    )
    return f'python -c "{program}" {shlex.quote(str(directory))} {shlex.quote(f"{directory}-safetensors")}'


def _require_loadable(directory: Path, name: str) -> None:
    if (directory / ADAPTER_CONFIG).is_file():
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
            f"{_shown(name, directory)} has an {ADAPTER_CONFIG} and no adapter_model.safetensors. Expected: both, as "
            "peft saves them. Copy them there again; adapters in a pickle must be loaded with peft and saved once more."
        )
    base = base_model_name(directory)
    try:
        find_model(base)
    except CodetuneError as why:
        raise type(why)(f"{_shown(name, directory)} are adapters of {base}. {why}") from why


def _require_safetensors(directory: Path, name: str) -> None:
    if (directory / "model.safetensors").is_file():
        return
    shards = sorted(set(read_json(directory / "model.safetensors.index.json").get("weight_map", {}).values()))
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


def _require_no_remote_code(directory: Path, name: str) -> None:
    settings = read_json(directory / "config.json")
    if not settings.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    # Where transformers knows the architecture itself, it leaves the code in the directory alone.
    if settings.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"{_shown(name, directory)} is of the type {settings.get('model_type')!r}, which needs Python code that "
            "comes with the model (config.json: auto_map). Expected: an architecture that transformers knows; this "
            "version runs no remote code. Choose another model."
        )


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


def _shown(name: str, directory: Path) -> str:
    """A hub id together with the directory of its snapshot; a directory once."""
    return name if Path(name).expanduser() == directory else f"{name} ({directory})"


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as why:
        raise ModelError(f"{path} is not JSON ({why}). Expected: the file as it was saved. Copy it again.") from why
    return content if isinstance(content, dict) else {}
