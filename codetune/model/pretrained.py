"""The one door to the functions by which libraries load a configuration, a tokenizer or a network from a directory.

Behind it no code that comes with a model runs, nothing is asked on standard input, the Hub is not called and no pickle
is read: the files are checked first (`file_check.py`), and each library is told so as well. Whatever a library raises
on broken files becomes a ModelError that names the directory. `load.py` makes models as the project wants them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from codetune.errors import CodetuneError, ModelError, first_line
from codetune.launch.devices import is_out_of_memory
from codetune.limits import limited_time
from codetune.model.file_check import (
    ADAPTER_CONFIG,
    WEIGHTS_PER_BYTE,
    encoder_parts,
    read_json,
    require_safe_encoder,
    require_safe_files,
    weight_files,
)
from codetune.model.tokenizer_check import require_bounded_steps

if TYPE_CHECKING:
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer

LOCAL_ONLY: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
ADAPTER_PATTERNS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern")
PATTERN_SECONDS = 3.0  # for all modules of a network, which take milliseconds
WHOLE_MODEL = "a config.json and whole safetensors files that fit it. Copy or download the model again."
OUTLINE_SECONDS = 30.0  # for the modules of a network, without their weights: seconds for the largest models
UNSAVED_NUMBERS = 1 << 28  # of the buffers of a network, such as masks


class LoadingInfo(TypedDict):
    """The part that is used of what `from_pretrained` says about the weights."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, object, object]]  # name, shape in the file, shape in the network


def read_configuration(path: Path) -> PreTrainedConfig:
    with _loading(path), limited_time(OUTLINE_SECONDS, lambda: _endless(f"{path / 'config.json'}")):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, **LOCAL_ONLY)
        config.get_text_config()  # fails where there are several
    return config


def read_generation_config(path: Path) -> GenerationConfig:
    with _loading(path):
        return GenerationConfig.from_pretrained(path, local_files_only=True)


def read_tokenizer(path: Path, *, plain: bool = False, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in the directory; `plain` takes tokenizer.json as it is, whatever class the configuration names."""
    kind = PreTrainedTokenizerFast if plain else AutoTokenizer
    with _loading_tokenizer(path):
        require_bounded_steps(path)
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(path, **LOCAL_ONLY, **options)
    return tokenizer


def splits_as_its_file(tokenizer: PreTrainedTokenizerBase, path: Path, text: str) -> bool:
    """Whether the tokenizer splits the text as the tokenizer.json in `path` says; true without such a file."""
    file = path / "tokenizer.json"
    with _loading_tokenizer(path):
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not file.is_file():
            return True
        own = Tokenizer.from_file(str(file))
        own.no_padding()  # to a length that the file can name
        own.no_truncation()
        return bool(found == own.encode(text, add_special_tokens=False).ids)


def read_network(path: Path, **options: Any) -> tuple[PreTrainedModel, LoadingInfo]:
    """The network in the directory, and what transformers says about its weights. Raises ModelError before memory is
    allocated if the configuration describes more weights than the files can hold."""
    with _loading(path):
        # Under ZeRO-3 DeepSpeed divides the weights as they are made: there is no outline.
        if not is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
            _require_enough_bytes(path, build_outline(read_configuration(path)))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **LOCAL_ONLY, **options
        )
    network, loading_info = loaded
    return network, loading_info


def build_network(config: PreTrainedConfig, **options: object) -> PreTrainedModel:
    """The network of a configuration, with arbitrary values as weights. Allocated memory that is never written takes
    no physical memory."""
    limit = limited_time(OUTLINE_SECONDS, lambda: _endless(f"The configuration of {config.name_or_path}"))
    with _library_errors(f"The model in {config.name_or_path}", WHOLE_MODEL), limit, no_init_weights():
        network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=False, **options
        )
    return network


def build_outline(config: PreTrainedConfig) -> PreTrainedModel:
    """The network of a configuration without memory for its weights."""
    with torch.device("meta"):
        return build_network(config)


def read_adapters(network: PreTrainedModel, path: Path, device: str) -> PeftModel:
    """The network with the adapters in the directory. Raises what peft raises for adapters that do not fit."""
    from peft import PeftModel  # takes seconds, for the models that have adapters

    require_safe_files(path)
    _require_quick_patterns(path, [name for name, _ in network.named_modules()])
    return PeftModel.from_pretrained(network, str(path), torch_device=device, local_files_only=True)


def _require_quick_patterns(path: Path, names: Sequence[str]) -> None:
    """Raises ModelError for a regular expression of adapters that takes for ever on the names of a network's modules.
    One that is invalid is left to peft."""
    settings = read_json(path / ADAPTER_CONFIG)
    values = [settings.get(key) for key in ADAPTER_PATTERNS]
    patterns = [value for value in values if isinstance(value, str)]
    patterns += [pattern for value in values if isinstance(value, dict) for pattern in value]
    endless = ModelError(
        f"{path / ADAPTER_CONFIG}: its patterns ({', '.join(ADAPTER_PATTERNS)}) took over {PATTERN_SECONDS:.0f} s "
        "on the names of the model's modules. Expected: patterns without nested repetitions. Copy the adapters again."
    )
    for pattern in patterns:
        with suppress(re.error, RecursionError, OverflowError), limited_time(PATTERN_SECONDS, lambda: endless):
            compiled = re.compile(rf"(.*\.)?({pattern})")  # as peft reads the keys of rank_pattern
            for name in names:
                compiled.fullmatch(name)


def read_encoder(path: Path, device: str) -> SentenceTransformer:
    """The sentence-transformers model in the directory. Raises ModelError if there is none, and for a network of which
    the files lack weights: the library would fill them at random."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    require_safe_encoder(path)
    for part in encoder_parts(path):
        require_bounded_steps(part)
    expected = "a sentence-transformers model. Copy it again, or set embed.model to `hashing`, which needs none."
    with _library_errors(f"The embedding model {path}", expected):
        encoder = SentenceTransformer(str(path), device=device, **LOCAL_ONLY, model_kwargs={"use_safetensors": True})
        lacking = [
            name for part in encoder if hasattr(part, "auto_model") for name in _lacking_weights(part.auto_model)
        ]
    if lacking:
        raise ModelError(
            f"The weights in {path} leave {len(lacking)} parameters unfilled ({', '.join(lacking[:3])}). Expected: "
            "every parameter of its config.json. Copy or download the model again."
        )
    return encoder


def _lacking_weights(network: Any) -> list[str]:
    """The parameters of a loaded network that its files do not hold, by reading only which tensors they name. A pooler
    aside: many encoders are published without theirs, and sentence-transformers does not use it."""
    _, info = type(network).from_pretrained(
        network.name_or_path, device_map="meta", use_safetensors=True, output_loading_info=True, **LOCAL_ONLY
    )
    return sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))


def start_vllm(path: Path, **options: Any) -> Any:
    """vLLM's own engine with the model in the directory."""
    from vllm import LLM  # an extra

    require_bounded_steps(path)
    with _loading(path):
        return LLM(model=str(path), load_format="safetensors", trust_remote_code=False, **options)


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    require_safe_files(path)
    with _library_errors(f"The model in {path}", WHOLE_MODEL):
        yield


@contextmanager
def _loading_tokenizer(path: Path) -> Iterator[None]:
    require_safe_files(path)
    expected = "the tokenizer.json and tokenizer_config.json that belong to the model. Copy them there from its source."
    with _library_errors(f"The tokenizer in {path}", expected):
        yield


@contextmanager
def _library_errors(loaded: str, expected: str) -> Iterator[None]:
    """Turns what a library raises into ModelError. That can be anything: a KeyError for a missing key, an
    AttributeError for a list in the place of an object, an assertion of torch, and from a panic of the Rust code in
    tokenizers an exception that is no Exception."""
    try:
        yield
    except (CodetuneError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust code derives from it directly
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            raise CodetuneError(
                f"Out of memory while loading: {loaded} ({first_line(error)}). Expected: room for it. Free memory, use "
                "a smaller model.dtype, or a larger machine"
            ) from error
        raise ModelError(
            f"{loaded} cannot be loaded ({type(error).__name__}: {first_line(error)}). Expected: {expected}"
        ) from error


def _endless(settings: str) -> ModelError:
    return ModelError(
        f"{settings} describes a network of which not even the outline was built in {OUTLINE_SECONDS:.0f} s of "
        "computing. Expected: some hundred layers and experts. Copy the file again from its source."
    )


def _require_enough_bytes(path: Path, outline: PreTrainedModel) -> None:
    numbers = sum(tensor.numel() for tensor in (*outline.parameters(), *outline.buffers()))
    stored = sum(file.stat().st_size for file in weight_files(path) if file.is_file())
    if numbers > WEIGHTS_PER_BYTE * stored + UNSAVED_NUMBERS:
        raise ModelError(
            f"{path / 'config.json'} describes a network of {numbers:,} numbers, and the weights have {stored:,} "
            "bytes. Expected: sizes that belong to each other. Copy or download the model again."
        )
