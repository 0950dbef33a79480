"""The files of a model -> the chat format that fits it, for a project that names none: the family whose signs (special
tokens, architecture, kind of tokenizer) the model has, else `tokenizer` where it has a chat template of its own. Reads
small JSON files; loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from codetune.data.chat import FAMILIES
from codetune.errors import ModelError
from codetune.model.file_check import read_json
from codetune.model.model_files import base_model_directory, tokenizer_directory
from codetune.project.sections import ChatFormat


def find_chat_format(directory: Path) -> ChatFormat:
    """Raises ModelError where no format or several could be meant."""
    files = tokenizer_directory(directory)
    tokenizer = read_json(files / "tokenizer_config.json")
    signs = _special_tokens(files, tokenizer) | {
        f"model_type {read_json(base_model_directory(directory) / 'config.json').get('model_type')}",
        f"tokenizer_class {str(tokenizer.get('tokenizer_class')).removesuffix('Fast')}",
    }
    formats: list[ChatFormat] = [name for name in get_args(ChatFormat) if name in FAMILIES and signs >= _signs(name)]
    own: list[ChatFormat] = ["tokenizer"]
    if not (tokenizer.get("chat_template") or (files / "chat_template.jinja").is_file()):
        own = []
    if len(found := formats or own) == 1:
        return found[0]
    fitting = [name for name, family in FAMILIES.items() if signs.issuperset(family.special_tokens)]
    fault = f"{' and '.join(formats)} could be it" if formats else "the model is of no known family and has no template"
    raise ModelError(
        f"model.chat_format is not set, and {fault} ({directory}). Set it to the format that the model is to learn: "
        f"{', '.join([*fitting, *own])}"
    )


def _signs(name: ChatFormat) -> set[str]:
    return {*FAMILIES[name].special_tokens, *FAMILIES[name].signs}


def _special_tokens(files: Path, settings: dict[str, object]) -> set[str]:
    """The tokens that stand outside the vocabulary: in tokenizer.json, or else in its configuration."""
    listed = read_json(files / "tokenizer.json").get("added_tokens")
    named = settings.get("added_tokens_decoder")
    tokens = [*(listed if isinstance(listed, list) else ()), *(named.values() if isinstance(named, dict) else ())]
    return {str(token.get("content")) for token in tokens if isinstance(token, dict)}
