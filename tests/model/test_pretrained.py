"""Broken and hostile model directories, each of which is an error that names it, whatever a library raises."""

from __future__ import annotations

import base64
import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetune.data.tokens import text_tokens
from codetune.errors import CodetuneError, ModelError
from codetune.model import pretrained
from codetune.model.load import count_parameters, load_configuration, load_model, load_tokenizer
from codetune.model.pretrained import _library_errors, build_outline, read_encoder, read_network
from codetune.project.sections import Model

FLOAT32 = Model(dtype="float32")


def change(path: Path, **values: object) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, **values}), encoding="utf-8")


@pytest.mark.parametrize(
    "load",
    [load_configuration, count_parameters, load_tokenizer, lambda path: load_model(path, FLOAT32, "cpu")],
    ids=["configuration", "parameters", "tokenizer", "model"],
)
@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_a_model_with_code_neither_asks_nor_runs_it(
    saved: Path, load: Callable[[Path], object], model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "input", lambda question="": pytest.fail("a question on standard input"))
    (saved / "own.py").write_text("import sys\nsys.ran_code_of_a_model = True\n")
    for name in ("config.json", "tokenizer_config.json"):
        change(saved / name, model_type=model_type, auto_map={"AutoConfig": "own.Own", "AutoTokenizer": "own.Own"})
    with pytest.raises(ModelError, match=r"auto_map\.AutoConfig: own\.Own"):
        load(saved)
    assert not hasattr(sys, "ran_code_of_a_model")


def test_an_unknown_architecture_is_refused_without_a_question(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda question="": pytest.fail("a question on standard input"))
    change(saved / "config.json", model_type="unheard_of")
    with pytest.raises(ModelError, match=f"The model in {saved} cannot be loaded"):
        load_model(saved, FLOAT32, "cpu")


def test_an_encoder_whose_files_lack_weights_is_refused(saved: Path) -> None:
    layers = json.loads((saved / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    assert read_encoder(saved, "cpu").encode(["x"]).shape[0] == 1
    change(saved / "config.json", num_hidden_layers=layers + 1)
    with pytest.raises(ModelError, match=rf"leave \d+ parameters unfilled \(layers\.{layers}\."):
        read_encoder(saved, "cpu")


def _tokenizer(path: Path, **values: object) -> None:
    change(path / "tokenizer.json", **values)


def _weights(path: Path, content: bytes) -> None:
    (path / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _tokenizer(path, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAE="}),
        lambda path: _tokenizer(path, normalizer=_out_of_bounds()),
        lambda path: _tokenizer(path, model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}),
        lambda path: _tokenizer(path, pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
        lambda path: (path / "tokenizer.json").write_bytes(b"[" * 100_000),
        lambda path: (path / "tokenizer.json").write_bytes(b'"\xff"'),
        lambda path: (path / "tokenizer.json").write_bytes(b"[]"),
        lambda path: (path / "tokenizer_config.json").write_bytes(b'{"added_tokens_decoder": []}'),
    ],
    ids=["panics", "panics at text", "no unknown token", "broken pattern", "deep", "not UTF-8", "a list", "odd keys"],
)
def test_a_broken_tokenizer_is_an_error_that_names_it(saved: Path, damage: Callable[[Path], object]) -> None:
    damage(saved)
    with pytest.raises(ModelError, match=f"The tokenizer in {saved} cannot be loaded"):
        load_tokenizer(saved)


def _out_of_bounds() -> dict[str, str]:
    """A trie that leads a walk out of itself."""
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(b"\4\0\0\0" + b"\xff" * 4).decode(),
    }


def test_padding_in_a_tokenizers_file_takes_no_memory(saved: Path) -> None:
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    _tokenizer(saved, padding={**padding, "pad_to_multiple_of": None})
    assert load_tokenizer(saved)("def f").input_ids


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, (10**18).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"{" * 4096],
    ids=["empty", "no header", "a header of 10^18 bytes", "a list as header", "text"],
)
def test_broken_weights_are_an_error_that_names_them(saved: Path, content: bytes) -> None:
    _weights(saved, content)
    with pytest.raises(ModelError, match=f"The model in {saved} cannot be loaded"):
        load_model(saved, FLOAT32, "cpu")


@pytest.mark.parametrize(
    "values",
    [{"hidden_size": "wide"}, {"vocab_size": None}, {"num_attention_heads": 0}, {"rope_parameters": [1]}],
    ids=["text", "nothing", "zero", "a list"],
)
def test_a_configuration_of_wrong_values_is_an_error_that_names_it(saved: Path, values: dict[str, Any]) -> None:
    change(saved / "config.json", **values)
    with pytest.raises(ModelError, match=str(saved)):
        load_model(saved, FLOAT32, "cpu")


def test_a_configuration_of_more_weights_than_the_files_hold_is_refused_before_memory_is_taken(saved: Path) -> None:
    change(saved / "config.json", vocab_size=10**10)
    with pytest.raises(ModelError, match=r"config\.json describes a network of 1,\d{3},\d{3},\d{3},\d{3} numbers"):
        read_network(saved)
    assert next(build_outline(load_configuration(saved)).parameters()).is_meta


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in hypothesis, then again
def test_a_configuration_whose_network_has_modules_without_end_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "OUTLINE_SECONDS", 0.3)
    monkeypatch.setattr("codetune.limits.REPEAT_SECONDS", 0.1)  # where hypothesis swallows the first error
    change(saved / "config.json", num_hidden_layers=4096)
    with pytest.raises(ModelError, match="not even the outline was built in"):
        count_parameters(saved)


def test_a_configuration_of_several_texts_is_refused(saved: Path) -> None:
    change(saved / "config.json", model_type="musicgen")
    with pytest.raises(ModelError, match=f"The model in {saved} cannot be loaded"):
        load_tokenizer(saved)


def test_a_tokenizer_that_fails_on_a_text_is_an_error_that_names_it(saved: Path) -> None:
    own = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    both = {"type": "Sequence", "pretokenizers": [split, own["pre_tokenizer"]]}
    _tokenizer(saved, pre_tokenizer=both)
    tokenizer = load_tokenizer(saved)
    with pytest.raises(ModelError, match=f"The tokenizer in {saved} fails on a text"):
        text_tokens(tokenizer, ["x" * 40 + "z"])


def test_an_interrupt_and_exhausted_memory_keep_their_meaning() -> None:
    with pytest.raises(KeyboardInterrupt), _library_errors("The model", "one"):
        raise KeyboardInterrupt
    with (
        pytest.raises(CodetuneError, match="Out of memory while loading: The model") as caught,
        _library_errors("The model", "one"),
    ):
        raise MemoryError
    assert caught.value.exit_status == 1
