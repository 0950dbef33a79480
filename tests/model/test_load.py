"""Models that load, and each kind that must not."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GenerationConfig

from codetune.errors import ModelError
from codetune.model import pretrained
from codetune.model.adapters import add_adapters
from codetune.model.load import load_model, load_quantized_model, load_tokenizer, uninitialized_model
from codetune.model.model_files import conversion_command, find_model
from codetune.project.sections import LoraSettings, Model, Quantization
from tests.model.builders import byte_tokenizer, tiny_model

FLOAT32 = Model(dtype="float32")


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


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """Random adapters of the saved model, which change what it writes."""
    path = tmp_path / "adapter"
    adapted: Any = add_adapters(load_model(saved, FLOAT32, "cpu"), "lora", LoraSettings(r=2), seed=1)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5, generator=torch.Generator().manual_seed(3))
    adapted.save_pretrained(path)
    return path


def greedy(model: Any) -> list[int]:
    tokens = model.generate(torch.arange(9)[None], do_sample=False, max_new_tokens=24, pad_token_id=2)
    return list(tokens[0].tolist())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 reads a name that transformers 5.23 has renamed
def test_adapters_are_merged_into_their_base_and_write_the_same(adapter: Path, saved: Path) -> None:
    merged, base = load_model(find_model(str(adapter)), FLOAT32, "cpu"), load_model(saved, FLOAT32, "cpu")
    unmerged = PeftModel.from_pretrained(load_model(saved, FLOAT32, "cpu"), str(adapter)).eval()
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in base.named_parameters()]
    assert not merged.training
    assert torch.allclose(logits(merged), logits(unmerged), atol=1e-5)
    assert greedy(merged) == greedy(unmerged) != greedy(base)


def test_adapters_on_adapters_are_merged_in_their_order(adapter: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    adapted: Any = add_adapters(load_model(adapter, FLOAT32, "cpu"), "lora", LoraSettings(r=2), seed=2)
    adapted.save_pretrained(upper, save_embedding_layers=False)
    assert json.loads((upper / "adapter_config.json").read_text())["base_model_name_or_path"] == str(adapter)
    # Fresh adapters change nothing, so the upper ones write what the lower ones do.
    assert greedy(load_model(find_model(str(upper)), FLOAT32, "cpu")) == greedy(load_model(adapter, FLOAT32, "cpu"))


def test_the_eos_tokens_of_adapters_are_those_of_the_merged_model(adapter: Path) -> None:
    GenerationConfig(eos_token_id=[1, 77]).save_pretrained(adapter)
    assert load_model(adapter, FLOAT32, "cpu").generation_config.eos_token_id == [1, 77]


def test_adapters_that_do_not_fit_or_are_not_whole_are_refused(adapter: Path, saved: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 of their tensors are not there"):
        load_model(adapter, FLOAT32, "cpu")
    save_file(
        {name: tensor[:, :1].contiguous() for name, tensor in weights.items()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="do not fit their base model"):
        load_model(adapter, FLOAT32, "cpu")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        find_model(str(adapter))


def test_adapters_whose_base_model_is_missing_name_it(adapter: Path, saved: Path) -> None:
    saved.rename(saved.with_name("moved"))
    with pytest.raises(ModelError, match=f"are adapters of {saved}. There is no directory {saved}"):
        find_model(str(adapter))


@pytest.mark.parametrize(
    ("base", "kind", "message"),
    [
        ("base", "IA3", "of the kind IA3"),
        ("adapter", "LORA", "does not say to which model"),
        (None, "LORA", "does not say to which model"),
    ],
    ids=["not LoRA", "its own base", "no base"],
)
def test_adapters_that_cannot_be_merged_are_refused(
    adapter: Path, saved: Path, base: str | None, kind: str, message: str
) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    changed = {**settings, "base_model_name_or_path": base and str(saved.with_name(base)), "peft_type": kind}
    (adapter / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=message):
        load_model(adapter, FLOAT32, "cpu")


@pytest.mark.parametrize(
    "changed",
    [
        {"lora_alpha": "x"},
        {"alpha_pattern": {"q_proj": "x"}},
        {"arrow_config": {"top_k": 3}},
        {"alora_invocation_tokens": [1]},
    ],
)
def test_adapters_whose_settings_fail_in_the_library_are_refused(adapter: Path, changed: dict[str, Any]) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **changed}))
    with pytest.raises(ModelError, match=f"The adapters in {adapter} do not fit their base model"):
        load_model(adapter, FLOAT32, "cpu")


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_pattern_of_adapters_without_end_is_refused(adapter: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PATTERN_SECONDS", 0.05)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    pattern = "(.*.*.*)*(.*.*.*)*x$"
    settings[key] = {pattern: 4} if key == "rank_pattern" else pattern
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="patterns without nested repetitions"):
        load_model(adapter, FLOAT32, "cpu")


def test_adapters_are_not_quantized(adapter: Path, saved: Path) -> None:
    with pytest.raises(ModelError, match=f"{adapter} holds adapters.*Set train.method: lora, or .*{saved}"):
        load_quantized_model(adapter, FLOAT32, "cpu", Quantization())


def test_adapters_of_a_hub_id_are_put_on_the_snapshot_of_it(
    adapter: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(load_model(adapter, FLOAT32, "cpu"))
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--somebody--base"
    shutil.copytree(saved, repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    changed = {**settings, "base_model_name_or_path": "somebody/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(changed))
    assert greedy(load_model(find_model(str(adapter)), FLOAT32, "cpu")) == expected


def test_pickle_weights_are_refused_with_a_command_that_converts_them(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(saved / "model.safetensors")
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        find_model(str(saved))
    command = conversion_command(saved)
    assert command in str(caught.value)
    python, flag, program, *arguments = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    monkeypatch.setattr(sys, "argv", [flag, *arguments])  # run here: another process would import torch again
    exec(program, {})
    converted = find_model(f"{saved}-safetensors")
    load_tokenizer(converted)
    assert torch.equal(logits(load_model(converted, FLOAT32, "cpu")), logits(tiny_model("llama", 320)))


def test_weights_that_leave_a_parameter_uninitialized_are_refused(saved: Path) -> None:
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


def test_adapters_without_a_tokenizer_use_that_of_their_base_model(saved: Path, tmp_path: Path) -> None:
    (adapters := tmp_path / "adapters").mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(saved)}))
    assert load_tokenizer(adapters).get_vocab() == load_tokenizer(saved).get_vocab()


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", 320).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "bos"), [("deepseek-coder-6.7b-instruct", 32013), ("codellama", 1)])
def test_real_tokenizers_add_the_bos_that_their_configuration_asks_for(shared_data: Path, name: str, bos: int) -> None:
    ids = load_tokenizer(shared_data / "tokenizers" / name)("def f").input_ids
    assert ids[0] == bos
    assert ids.count(bos) == 1


@pytest.mark.parametrize("attention", ["flash", "varlen"])
def test_attention_that_needs_a_gpu_is_refused_without_one(attention: str, tmp_path: Path) -> None:
    tiny_model("llama", 20).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"model.attention is {attention}.*is on cpu.*Set model.attention: auto"):
        load_model(tmp_path, Model(attention=attention, dtype="float32"), "cpu")


@pytest.mark.parametrize("architecture", ["llama", "gemma", "starcoder2"])
def test_an_uninitialized_model_is_the_model_but_for_its_weights(tmp_path: Path, architecture: str) -> None:
    tiny_model(architecture, 100).save_pretrained(tmp_path)
    empty, model = uninitialized_model(tmp_path, FLOAT32), load_model(tmp_path, FLOAT32, "cpu")
    shapes = [{name: (each.shape, each.dtype) for name, each in one.named_parameters()} for one in (empty, model)]
    assert shapes[0] == shapes[1]
    assert all(torch.equal(each, model.get_buffer(name)) for name, each in empty.named_buffers())
    assert str(empty.config) == str(model.config)
    assert not empty.training


def test_an_uninitialized_model_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # as these tests have it
    AutoConfig.for_model("llama", hidden_size=1024, num_hidden_layers=16, vocab_size=32256).save_pretrained(tmp_path)
    before = _resident_bytes()
    empty = uninitialized_model(tmp_path, FLOAT32)
    numbers = sum(weights.numel() for weights in empty.parameters())
    assert numbers > 300e6
    assert _resident_bytes() - before < numbers


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    ("added", "is_special", "named"),
    [("<think>", False, True), ("<|pad|>", True, False), ("<|tool|>", False, False)],
    ids=["a word", "padding", "an unused control token"],
)
def test_a_token_of_a_text_without_an_embedding_is_found_when_the_tokenizer_is_loaded(
    tmp_path: Path, added: str, is_special: bool, named: bool
) -> None:
    tokenizer = byte_tokenizer(bos=True)
    tiny_model("llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.add_tokens([added], special_tokens=is_special)
    tokenizer.save_pretrained(tmp_path)
    if named:
        with pytest.raises(ModelError, match=r"the token 312 \('<think>'\), .*resize_token_embeddings\(313\)"):
            load_tokenizer(tmp_path)
    else:
        assert len(load_tokenizer(tmp_path)) == 313
