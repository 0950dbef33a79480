"""Models that are found, and files that must not be loaded; all before torch is imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from codetune.errors import ModelError
from codetune.model.model_files import count_weights, find_model, find_model_files, require_model
from tests.model.builders import tiny_model


@pytest.mark.parametrize(
    ("name", "message"),
    [("./none", "There is no directory"), ("./file", "is a file"), ("some/none", "the Hub is unreachable")],
)
def test_a_name_without_a_model_is_refused_within_five_seconds(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    started = time.monotonic()
    with pytest.raises(ModelError, match=message):
        find_model(name)
    assert time.monotonic() - started < 5


def test_a_model_in_the_hubs_cache_is_found_without_a_network(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    assert find_model("some/model") == repository / "snapshots" / ("0" * 40)


def test_a_directory_without_weights_or_configuration_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        find_model(str(saved))
    (saved / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_model(str(saved))


def test_a_missing_part_of_the_weights_is_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / "model-1.safetensors").touch()
    with pytest.raises(ModelError, match=r"lacks 1 of its 2 weight files: model-2\.safetensors"):
        find_model(str(saved))


def test_weights_are_counted_from_the_headers_of_their_files(saved: Path) -> None:
    assert count_weights(saved) == sum(weight.numel() for weight in tiny_model("llama", 320).parameters())


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no weights")])
def test_weights_that_cannot_be_read_are_not_counted(spoil: Callable[[Path], None], saved: Path) -> None:
    spoil(saved / "model.safetensors")
    assert count_weights(saved) is None


def test_a_missing_model_is_an_error_before_torch_is_imported() -> None:
    program = (
        "import sys\nfrom codetune.errors import ModelError\nfrom codetune.model.model_files import find_model\n"
        "try: find_model('./nowhere')\nexcept ModelError: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_settings_of_a_model_that_is_here_need_no_weights_and_no_download(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}", encoding="utf-8")
    assert find_model_files(str(tmp_path / "base"), tmp_path / "scratch") == tmp_path / "base"
    with pytest.raises(ModelError, match="holds no weights"):
        require_model(str(tmp_path / "base"))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "find",
    [lambda name, _: require_model(name), find_model_files],
    ids=["require_model", "find_model_files"],
)
def test_a_model_that_the_hub_does_not_give_is_told_before_any_download(
    find: Callable[[str, Path], object], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="was not found locally or in the Hub cache"):
        find("nobody/no-such-model", tmp_path / "scratch")
