"""Checks the files of a model directory before a library opens them: plain files inside the directory, JSON objects of
a sane size, weights in safetensors, and no key by which a library imports code or opens another file. Reads names,
sizes and small JSON files only, so that a wrong file is an error before torch is imported. Whether the weights fit the
configuration is known after loading (`pretrained.py`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from codetune.errors import ModelError
from codetune.user_files import require_plain_file

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
OPENED_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "*.md", "additional_chat_templates/*.jinja")
SETTINGS_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "*processor_config.json",
    ADAPTER_CONFIG,
    "config_sentence_transformers.json",
    "sentence_*_config.json",
)
JSON_BYTES = 64 << 20  # the index of a model with 100,000 tensors has 9 MB
VOCABULARY_BYTES = 1 << 30  # the largest tokenizer.json have some 40 MB
MOST_REPETITIONS = 4096  # of a layer or an expert, or the rank of an adapter: the largest models have some hundred
REPEATED = re.compile(r"r|(n|num|encoder|decoder)_?(?!.*(size|dim)).*(layers?|experts|blocks|groups)")
KERNEL_KEYS = re.compile(r"_?(attn|experts)_implementation(_internal)?")
MOST_LABELS = 1_000_000  # of a classifier, for each of which transformers makes a name
# Keys that transformers reads when the model is run, and not before -> their types.
_NUMBER, _SWITCH = (int, type(None)), (bool, type(None))
USED_LATE: Mapping[str, tuple[type, ...]] = {
    "sliding_window": _NUMBER,
    **dict.fromkeys(("output_hidden_states", "output_attentions", "use_cache", "return_dict"), _SWITCH),
}
LATE_VALUES: Mapping[tuple[type, ...], str] = {_NUMBER: "a whole number or null", _SWITCH: "true or false"}
ROUNDS = re.compile(r".*_niter_([0-9]+)")  # of an approximation by which peft begins some adapters
PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "BOOL"})  # of weights and their buffers, not quantized
OTHER_FILES = ("configuration_files", "fast_tokenizer_files", "transformers_weights")
# peft imports the module that an adapter's megatron_core names (0.18), and copies layers as often as it is told.
ADAPTER_KEYS = ("megatron_config", "layer_replication")
# Types of modules.json that read safetensors, or no weights; the last part of the names that sentence-transformers has
# given them.
ENCODER_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling")
ENCODER_OPTIONS = ("model", "tokenizer", "processor", "config")  # with _args or _kwargs, for transformers' loaders
# Sizes of one matrix of an encoder, which is made before its weights are read.
MATRIX_KEYS = (("in_features", "out_features"), ("vocab_size", "hidden_size"), ("intermediate_size", "hidden_size"))
WEIGHTS_PER_BYTE, SMALL_MATRIX = 4, 1 << 28  # a weight takes 2 bits at least
HARMLESS_OPTIONS = frozenset(
    {"dtype", "torch_dtype", "attn_implementation", "model_max_length", "max_length", "padding_side", "do_lower_case"}
)


def require_safe_files(directory: Path) -> None:
    """Raises ModelError, which names file and cause, for a model, tokenizer or adapter directory with a file that no
    library should open."""
    home = directory.resolve()
    for pattern in OPENED_FILES:
        for path in directory.glob(pattern):
            _require_plain(path, home)
    for pattern in SETTINGS_FILES:
        for path in directory.glob(pattern):
            _require_plain_settings(path)
    weight_files(directory)
    _require_quantized_weights(directory)


def require_safe_encoder(directory: Path) -> None:
    """Checks every part of a sentence-transformers model like `require_safe_files`. Raises ModelError as well for a
    part that is not of the library itself, and for adapters."""
    for part in encoder_parts(directory):
        require_safe_files(part)
        if (part / ADAPTER_CONFIG).is_file():
            raise ModelError(
                f"{part} holds adapters ({ADAPTER_CONFIG}). Expected: a whole embedding model. Merge them into it with "
                "peft, and name the merged model."
            )
        for path in sorted(part.glob("sentence_*_config.json")):
            _require_harmless_options(path)
        _require_bytes_of_matrices(part)


def encoder_parts(directory: Path) -> list[Path]:
    """The directories of the modules of a sentence-transformers model: itself where modules.json names none. Raises
    ModelError for a module whose type is not the library's own, or that lies elsewhere."""
    listed = directory / "modules.json"
    if not listed.is_file():
        return [directory]
    modules = _parse_json(listed)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{listed} is not a list of modules. Expected: the file as it was saved. Copy it again.")
    return [directory, *(_encoder_part(listed, module) for module in modules)]


def weight_files(directory: Path) -> list[Path]:
    """The files of the weights of a whole model, of which some may be missing: `WEIGHTS`, or what its index names;
    empty without either. Raises ModelError for an index that names anything but safetensors files beside it."""
    index = directory / WEIGHTS_INDEX
    if (directory / WEIGHTS).is_file() or not index.is_file():
        return [path for path in (directory / WEIGHTS,) if path.is_file()]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(
            f"{index} has no weight_map of tensors and their files. Expected: the index as it was saved. Copy it again."
        )
    for tensor, name in weight_map.items():
        if not name.endswith(".safetensors") or _leaves(name) or "/" in name:
            raise ModelError(
                f"{index} looks for {tensor} in {name!r}. Expected: plain names of safetensors files in the same "
                "directory, because other formats can run code. Convert the weights, or choose another model."
            )
    return [directory / name for name in sorted(set(weight_map.values()))]


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file; empty if there is no such file. Raises ModelError if it is not JSON, not an object,
    nested too deeply or larger than `JSON_BYTES`."""
    if not path.is_file():
        return {}
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a JSON {type(content).__name__}. Expected: an object, {{...}}, as it was saved. Copy the "
            "file again."
        )
    return content


def _parse_json(path: Path) -> object:
    if path.stat().st_size > JSON_BYTES:
        raise _too_large(path, JSON_BYTES)
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply. Expected: the file as it was saved. Copy it again.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}). Expected: the file as it was saved. Copy it again.") from error
    return content


def _require_plain(path: Path, home: Path) -> None:
    target = path.resolve()
    if path.is_symlink() and not target.is_relative_to(home) and not _is_hub_blob(target, home):
        raise ModelError(
            f"{path} is a link to {target}, outside of the model's directory. Expected: files inside it. Copy the file "
            "there instead of the link."
        )
    if path.is_dir() or not path.exists():  # a missing file is an error of the library that needs it
        return
    require_plain_file(path, ModelError)
    if path.suffix != ".safetensors" and path.stat().st_size > VOCABULARY_BYTES:
        raise _too_large(path, VOCABULARY_BYTES)


def _is_hub_blob(target: Path, home: Path) -> bool:
    """A snapshot in the Hub's cache consists of links to the blobs of its own repository."""
    repository = target.parent.parent
    return target.parent.name == "blobs" and repository.name.startswith("models--") and repository in home.parents


def _require_quantized_weights(directory: Path) -> None:
    """Raises ModelError for plain weights that the configuration calls quantized: some libraries load them, and fail
    when the model is run."""
    path = directory / "config.json"
    for key, value in _entries(read_json(path)):
        if key != "quantization_config" or not value:
            continue
        if not isinstance(value, dict):
            raise ModelError(
                f"{path}: {key} is {json.dumps(value)[:80]}. Expected: an object, {{...}}. Copy the file again."
            )
        types = {kind for file in weight_files(directory) for kind in _tensor_types(file)}
        if types and types <= PLAIN_TYPES:
            raise ModelError(
                f"{path} says that the weights are quantized ({key}.quant_method: {value.get('quant_method')!r}), and "
                f"they are plain ({', '.join(sorted(types))}). Expected: settings and weights that belong together. "
                f"Remove {key} from a copy of this model, or copy the quantized weights there."
            )


def _tensor_types(path: Path) -> set[str]:
    """The types of a safetensors file, of its header alone; empty for a broken one, which its library refuses.
    Format: https://huggingface.co/docs/safetensors."""
    if not path.is_file():
        return set()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > JSON_BYTES:
            return set()
        with suppress(ValueError, RecursionError):
            header = json.loads(file.read(length))
            if isinstance(header, dict):
                return {
                    str(entry["dtype"]) for entry in header.values() if isinstance(entry, dict) and "dtype" in entry
                }
    return set()


def _too_large(path: Path, limit: int) -> ModelError:
    return ModelError(
        f"{path} has {path.stat().st_size:,} bytes. Expected: {limit:,} at most. Copy the file again from its source."
    )


def _require_plain_settings(path: Path) -> None:
    for key, value in _entries(read_json(path)):
        _require_no_foreign_code(path, key, value)
        if path.name == "config.json" and not isinstance(value, USED_LATE.get(key, object)):
            raise ModelError(
                f"{path}: {key} is {json.dumps(value)[:80]}. Expected: {LATE_VALUES[USED_LATE[key]]}. Copy the file "
                "again from its source."
            )
        _require_bounded_counts(path, key, value)


def _require_no_foreign_code(path: Path, key: str, value: object) -> None:
    if key == "auto_map" and value:
        raise _needs_code(path, value)
    if key in OTHER_FILES and value:
        raise _refused(path, key, value, "lets transformers open other files than those of its version")
    if path.name == ADAPTER_CONFIG and key in ADAPTER_KEYS and value:
        raise _refused(path, key, value, "lets peft import modules or copy layers")
    if KERNEL_KEYS.fullmatch(key) and "/" in str(value):
        raise _refused(path, key, value, "asks for code from the Hub")


def _require_bounded_counts(path: Path, key: str, value: object) -> None:
    if key == "num_labels":
        _require_at_most(path, key, value, MOST_LABELS)
    elif REPEATED.fullmatch(key):
        _require_at_most(path, key, value, MOST_REPETITIONS)
    elif key == "rank_pattern" and isinstance(value, dict):
        for pattern, rank in value.items():
            _require_at_most(path, f"{key}.{pattern}", rank, MOST_REPETITIONS)
    elif isinstance(value, str) and (rounds := ROUNDS.fullmatch(value[:1000])):
        _require_at_most(path, f"{key} (rounds)", int(rounds[1]), MOST_REPETITIONS)


def _require_at_most(path: Path, key: str, value: object, most: int) -> None:
    least = 0 if key == "num_hidden_layers" else -math.inf  # some counts are -1 where there are none
    if isinstance(value, int) and not least <= value <= most:
        raise ModelError(
            f"{path}: {key} is {value:,}. Expected: 0 or more, {most:,} at most. Copy the file again from its source."
        )


def _entries(settings: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Every key with its value, at every depth."""
    waiting: list[object] = [settings]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _needs_code(path: Path, auto_map: object) -> ModelError:
    classes = auto_map if isinstance(auto_map, dict) else {"AutoTokenizer": auto_map}
    named = ", ".join(f"auto_map.{key}: {value}" for key, value in classes.items())
    return ModelError(
        f"{path} asks for Python code that comes with the model ({named}). Expected: an architecture that transformers "
        "implements itself; codetune runs no other code. If transformers does so, remove auto_map from a copy of this "
        "model; otherwise choose another one."
    )


def _refused(path: Path, key: str, value: object, effect: str) -> ModelError:
    shown = json.dumps(value)
    return ModelError(
        f"{path}: {key} is {shown[:80]}, which {effect}. Expected: a file without this key. Remove it, if the model is "
        "whole without it."
    )


def _encoder_part(listed: Path, module: Mapping[str, object]) -> Path:
    kind, place = str(module.get("type")), module.get("path")
    library, _, name = kind.rpartition(".")
    if library.partition(".")[0] != "sentence_transformers" or name not in ENCODER_MODULES:
        raise ModelError(
            f"{listed} names a module of the type {kind}. Expected: one of sentence-transformers' own "
            f"({', '.join(ENCODER_MODULES)}); codetune runs no code that comes with a model. Choose another embedding "
            "model, or set embed.model to `hashing`."
        )
    home = listed.parent.resolve()
    if not isinstance(place, str) or _leaves(place) or not (home / place).resolve().is_relative_to(home):
        raise ModelError(
            f"{listed} looks for a module in {place!r}. Expected: a directory inside that of the model. Copy the model "
            "again."
        )
    return listed.parent / place


def _require_harmless_options(path: Path) -> None:
    settings = read_json(path)
    for name in (f"{option}_{ending}" for option in ENCODER_OPTIONS for ending in ("args", "kwargs")):
        options = settings.get(name)
        if isinstance(options, dict) and (others := sorted(options.keys() - HARMLESS_OPTIONS)):
            raise _refused(path, f"{name}.{others[0]}", options[others[0]], "changes how transformers loads the model")


def _require_bytes_of_matrices(part: Path) -> None:
    """Raises ModelError for a matrix of an encoder that its weights are too few for. One without safetensors is refused
    elsewhere."""
    settings = read_json(part / "config.json")
    stored = sum(file.stat().st_size for file in weight_files(part) if file.is_file())
    if not stored and any(part.glob("*.bin")):
        return
    for keys in MATRIX_KEYS:
        sizes = [size for size in map(settings.get, keys) if isinstance(size, int)]
        if len(sizes) == len(keys) and math.prod(sizes) > WEIGHTS_PER_BYTE * stored + SMALL_MATRIX:
            raise ModelError(
                f"{part / 'config.json'} describes a matrix of {' x '.join(map(str, sizes))} numbers "
                f"({' x '.join(keys)}), and the weights have {stored:,} bytes. Expected: sizes that belong to each "
                "other. Copy or download the model again."
            )


def _leaves(name: str) -> bool:
    """Whether a path could lead out of the directory that it is relative to."""
    return Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name
