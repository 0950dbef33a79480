"""Models that load, and each kind that must not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from codetune.errors import ModelError
from codetune.model.load import choose_device, conversion_command, find_model, load_model, load_tokenizer
from codetune.project import Model
from tests.model.builders import byte_tokenizer, tiny_model

FLOAT32 = Model(dtype="float32")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    tiny_model("llama", 320).save_pretrained(path)
    byte_tokenizer(bos=True).save_pretrained(path)
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(torch.arange(9)[None]).logits
    return output


def test_a_saved_model_comes_back_in_evaluation_mode(saved: Path) -> None:
    model = load_model(find_model(str(saved)), FLOAT32, "cpu")
    assert not model.training
    assert torch.equal(logits(model), logits(tiny_model("llama", 320)))


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.bfloat16)]
)
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tiny_model("llama", 320).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, Model(dtype=name), "cpu").dtype == dtype


@pytest.mark.parametrize(("name", "used"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_the_attention_is_the_one_asked_for(saved: Path, name: str, used: str) -> None:
    assert load_model(saved, Model(dtype="float32", attention=name), "cpu").config._attn_implementation == used


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 reads a name that transformers 5.23 has renamed
def test_adapters_are_put_on_their_base(saved: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(load_model(saved, FLOAT32, "cpu"), LoraConfig(target_modules="all-linear", r=2))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(find_model(str(tmp_path / "adapter")), FLOAT32, "cpu")
    assert torch.allclose(logits(loaded), logits(adapted.eval()), atol=1e-6)
    assert not torch.allclose(logits(loaded), logits(load_model(saved, FLOAT32, "cpu")), atol=1e-3)


def test_a_name_that_is_nothing_is_refused_within_five_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "file").touch()
    started = time.monotonic()
    for name, message in (
        (str(tmp_path / "none"), "There is no directory"),
        (str(tmp_path / "file"), "is a file"),
        ("some/none", "the hub cannot be asked"),
    ):
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


def test_pickle_weights_are_refused_with_a_command_that_converts_them(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(saved))
    command = conversion_command(saved)
    assert command in str(caught.value)
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, capture_output=True)
    converted = find_model(f"{saved}-safetensors")
    load_tokenizer(converted)
    assert torch.equal(logits(load_model(converted, FLOAT32, "cpu")), logits(tiny_model("llama", 320)))


def test_remote_code_is_refused_unless_transformers_needs_none(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    (saved / "config.json").write_text(json.dumps(config))
    assert find_model(str(saved)) == saved
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(ModelError, match="'unheard_of', which needs Python code"):
        find_model(str(saved))


def test_weights_that_leave_a_parameter_to_chance_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"leave 1 parameters unfilled \(model\.norm\.weight\)"):
        load_model(saved, FLOAT32, "cpu")


def test_a_damaged_file_of_weights_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(saved, FLOAT32, "cpu")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", 320).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "bos"), [("deepseek-coder-6.7b-instruct", 32013), ("codellama", 1)])
def test_real_tokenizers_add_the_bos_that_their_configuration_asks_for(shared_data: Path, name: str, bos: int) -> None:
    ids = load_tokenizer(shared_data / "tokenizers" / name)("def f").input_ids
    assert ids[0] == bos
    assert ids.count(bos) == 1


def test_the_device_is_one_that_torch_has() -> None:
    assert torch.device(choose_device()).type in ("cpu", "cuda")


@pytest.mark.parametrize("attention", ["flash", "varlen"])
def test_attention_that_needs_a_gpu_is_refused_without_one(attention: str, tmp_path: Path) -> None:
    tiny_model("llama", 20).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"model.attention is {attention}.*is on cpu.*Set model.attention: auto"):
        load_model(tmp_path, Model(attention=attention, dtype="float32"), "cpu")
