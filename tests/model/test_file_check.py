"""Files of a model directory that no library may open, each refused by its name and its cause."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from codetune.errors import ModelError
from codetune.model.file_check import read_json, require_safe_encoder, require_safe_files, weight_files
from codetune.model.model_files import base_model_directory, find_encoder, find_model

CODE = r"asks for Python code that comes with the model \(auto_map"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (path := tmp_path / "model").mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    (path / "model.safetensors").touch()
    return path


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "own.Own"}}, rf"{CODE}\.AutoConfig: own\.Own\).*remove auto_map"),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "own.Own"}}}, CODE),
        ("tokenizer_config.json", {"auto_map": ["own.Own", None]}, CODE),
        ("generation_config.json", {"auto_map": {"AutoModel": "other/repository--own.Own"}}, CODE),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "own.Own"}}, CODE),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files is"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files is"),
        ("config.json", {"transformers_weights": "adapter_model.bin"}, "transformers_weights is"),
        ("config.json", {"attn_implementation": "somebody/kernel"}, "attn_implementation is .* code from the Hub"),
        ("config.json", {"num_hidden_layers": 10**8}, r"config\.json: num_hidden_layers is 100,000,000.*4,096 at most"),
        ("config.json", {"num_hidden_layers": -1}, r"num_hidden_layers is -1.*0 or more"),
        ("config.json", {"sliding_window": "x"}, r'sliding_window is "x".*a whole number or null'),
        ("config.json", {"text_config": {"sliding_window": []}}, r"sliding_window is \[\]"),
        ("config.json", {"output_hidden_states": {"a": []}}, "output_hidden_states is .*true or false"),
        ("config.json", {"vision_config": {"n_layer": 10**8}}, "n_layer is 100,000,000"),
        ("config.json", {"num_local_experts": 10**8}, "num_local_experts is 100,000,000"),
        ("config.json", {"num_labels": 10**9}, r"num_labels is 1,000,000,000.*1,000,000 at most"),
        ("adapter_config.json", {"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj is 1,000,000,000"),
        ("adapter_config.json", {"init_lora_weights": "pissa_niter_1000000"}, r"\(rounds\) is 1,000,000"),
        ("adapter_config.json", {"megatron_config": {}, "r": 10**8}, "r is 100,000,000"),
        ("adapter_config.json", {"megatron_config": {"x": 1}, "megatron_core": "os"}, "megatron_config is"),
        ("adapter_config.json", {"layer_replication": [[0, 10**8]]}, "layer_replication is"),
        ("config.json", [], r"config\.json holds a JSON list"),
        ("model.safetensors.index.json", [], "index.json holds a JSON list"),
        ("model.safetensors.index.json", {"weight_map": ["a"]}, "index.json has no weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": ["b"]}}, "index.json has no weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": "a.bin"}}, "looks for a in 'a.bin'"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../a.safetensors"}}, r"looks for a in '\.\./a"),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/a.safetensors"}}, "looks for a in '/etc"),
        ("model.safetensors.index.json", {"weight_map": {"a": "b/a.safetensors"}}, "looks for a in 'b/a"),
    ],
)
def test_a_key_that_leads_to_code_or_other_files_or_repeats_without_end_is_refused(
    model: Path, name: str, settings: object, message: str
) -> None:
    (model / name).write_text(json.dumps(settings))
    if "index" in name:
        (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=message):
        find_model(str(model))


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": {}, "attn_implementation": "sdpa", "configuration_files": None},
        {"shared_expert_intermediate_size": 20480, "hidden_size_per_layer": 8192, "num_attention_heads": 64},
    ],
)
def test_ordinary_settings_are_allowed(model: Path, settings: object) -> None:
    (model / "config.json").write_text(json.dumps(settings))
    assert find_model(str(model)) == model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"", "is not JSON"),
    ],
    ids=["deep", "not UTF-8", "a number of 5,000 digits", "empty"],
)
def test_broken_json_is_refused(model: Path, content: bytes, message: str) -> None:
    (model / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json.* {message}|config\.json {message}"):
        find_model(str(model))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_of_absurd_size_is_refused_unread(model: Path, name: str) -> None:
    with (model / name).open("ab") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(ModelError, match=rf"{name} has 1,099,511,627,776 bytes"):
        require_safe_files(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_link_that_leads_out_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"{name} is a link to {tmp_path / 'elsewhere'}, outside"):
        find_model(str(model))


@pytest.fixture
def snapshot(model: Path, tmp_path: Path) -> Path:
    """The model as the hub's cache has it: a link to the blob of its weights."""
    blobs, path = (tmp_path / "models--some--model" / name for name in ("blobs", "snapshots/0123"))
    blobs.mkdir(parents=True)
    path.parent.mkdir()
    model.rename(path)
    (path / "model.safetensors").rename(blobs / "0123")
    (path / "model.safetensors").symlink_to(blobs / "0123")
    return path


def test_a_link_to_a_blob_of_another_model_is_refused(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "models--another").mkdir()
    (tmp_path / "models--some--model" / "blobs").rename(tmp_path / "models--another" / "blobs")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "models--another" / "blobs" / "0123")
    with pytest.raises(ModelError, match=r"model\.safetensors is a link to .*models--another/blobs/0123, outside"):
        find_model(str(snapshot))


def test_links_inside_a_directory_and_to_the_hubs_blobs_are_followed(snapshot: Path, tmp_path: Path) -> None:
    model = snapshot
    (model / "config.json").rename(model / "own.json")
    (model / "config.json").symlink_to("own.json")
    (tmp_path / "link").symlink_to(model)
    assert find_model(str(tmp_path / "link")) == tmp_path / "link"
    assert weight_files(model) == [model / "model.safetensors"]


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "nobody-knows-it", 7, None])
def test_plain_weights_that_are_called_quantized_are_refused(model: Path, method: object) -> None:
    declared = {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
    (model / "config.json").write_text(json.dumps(declared))
    save_file({"a": np.zeros(2, "float32"), "position_ids": np.zeros(2, "int64")}, model / "model.safetensors")
    with pytest.raises(ModelError, match=rf"quant_method: {method!r}\), and they are plain \(F32, I64\)"):
        find_model(str(model))
    save_file({"a": np.zeros(2, "uint8")}, model / "model.safetensors")
    assert find_model(str(model)) == model


@pytest.mark.parametrize("declared", [["bitsandbytes"], "bitsandbytes", 4])
def test_a_quantization_that_is_no_object_is_refused(model: Path, declared: object) -> None:
    (model / "config.json").write_text(json.dumps({"quantization_config": declared}))
    with pytest.raises(ModelError, match=r"config\.json: quantization_config is .*Expected: an object"):
        find_model(str(model))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x05" + bytes(7) + b"[[[[["])
def test_a_broken_file_of_weights_is_left_to_its_library(model: Path, content: bytes) -> None:
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    (model / "model.safetensors").write_bytes(content)
    assert find_model(str(model)) == model


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md"])
def test_a_pipe_in_the_place_of_a_file_is_refused(model: Path, name: str) -> None:
    os.mkfifo(model / name)
    with pytest.raises(ModelError, match=f"{re.escape(name)} is a named pipe"):
        require_safe_files(model)


def adapters(path: Path, base: Path) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (path / "adapter_model.safetensors").touch()
    return path


def test_adapters_in_a_circle_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path, base in ((first, second), (second, first)):
        adapters(path, base)
    with pytest.raises(ModelError, match=f"{second / 'adapter_config.json'} names {first} as base model"):
        find_model(str(first))
    with pytest.raises(ModelError, match="adapters there belong to these"):
        base_model_directory(first)


@pytest.mark.parametrize("name", ["/a\0b", "/" + "a" * 5000, "~nobody-at-all/model"], ids=["null", "long", "nobody"])
def test_a_base_model_whose_name_can_be_no_path_is_refused(tmp_path: Path, name: str) -> None:
    adapters(tmp_path / "adapters", Path())
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    with pytest.raises(ModelError, match="The name of a model cannot be a path"):
        find_model(str(tmp_path / "adapters"))


def test_adapters_in_a_pickle_are_refused(model: Path, tmp_path: Path) -> None:
    path = adapters(tmp_path / "adapters", model)
    assert find_model(str(path)) == path
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        find_model(str(path))


def test_a_missing_file_has_no_settings(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") == {}


OWN = "sentence_transformers.models.Transformer"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"type": "os.system", "path": ""}], "a module of the type os.system"),
        ([{"type": "own.Transformer", "path": ""}], "a module of the type own.Transformer"),
        ([{"type": "sentence_transformers_own.Pooling", "path": ""}], "of the type sentence_transformers_own.Pooling"),
        ([{"type": "sentence_transformers.base.modules.router.Router", "path": ""}], r"modules\.router\.Router"),
        ([{"type": OWN, "path": "../other"}], r"looks for a module in '\.\./other'"),
        ([{"type": OWN, "path": "/etc"}], "looks for a module in '/etc'"),
        ([{"type": OWN}], "looks for a module in None"),
        ({"type": OWN}, "is not a list of modules"),
        ([OWN], "is not a list of modules"),
    ],
)
def test_a_module_of_an_encoder_that_is_not_the_librarys_own_is_refused(
    model: Path, modules: object, message: str
) -> None:
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=message):
        find_encoder(str(model))


@pytest.mark.parametrize(
    "options", [{"use_safetensors": False}, {"weights_only": False}, {"trust_remote_code": True}, {"gguf_file": "x"}]
)
def test_options_of_an_encoder_that_change_how_it_is_loaded_are_refused(model: Path, options: object) -> None:
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "model_args": options}))
    with pytest.raises(ModelError, match=r"sentence_bert_config\.json: model_args\."):
        require_safe_encoder(model)


def test_a_directory_above_an_encoder_is_told_before_it_is_loaded(model: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no modules.json and no config.json.*Fix embed.model"):
        find_encoder(str(model.parent))


def test_a_part_of_an_encoder_that_is_a_link_to_elsewhere_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "modules.json").write_text(json.dumps([{"type": OWN, "path": "part"}]))
    (tmp_path / "elsewhere").mkdir()
    (model / "part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="looks for a module in 'part'"):
        find_encoder(str(model))


def test_the_parts_of_an_encoder_are_checked_as_models_are(model: Path) -> None:
    modules = [{"type": OWN, "path": "part"}, {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "part").mkdir()
    require_safe_encoder(model)
    (model / "part" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "own.Own"}}))
    with pytest.raises(ModelError, match=rf"part/config\.json {CODE}"):
        require_safe_encoder(model)
    (model / "part" / "config.json").unlink()
    (model / "part" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="part holds adapters"):
        require_safe_encoder(model)


@pytest.mark.parametrize("weights", ["other.safetensors", "model-1.safetensors"], ids=["another name", "a shard"])
def test_safetensors_that_an_encoder_passes_over_do_not_stand_for_its_pickle(model: Path, weights: str) -> None:
    (model / "modules.json").write_text(json.dumps([{"type": OWN, "path": "2_Dense"}]))
    part = model / "2_Dense"
    part.mkdir()
    (part / weights).touch()
    (part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    find_encoder(str(model))
    (part / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="pickle weights only"):
        find_encoder(str(model))
    (part / "model.safetensors").touch()
    find_encoder(str(model))


@pytest.mark.parametrize(
    "sizes",
    [{"in_features": 30_000, "out_features": 30_000}, {"vocab_size": 10**9, "hidden_size": 64}],
    ids=["a dense layer", "embeddings"],
)
def test_a_matrix_of_an_encoder_that_its_weights_are_too_few_for_is_refused(model: Path, sizes: dict[str, int]) -> None:
    (model / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(ModelError, match=r"describes a matrix of \d+ x \d+ numbers .* have 0 bytes"):
        find_encoder(str(model))
    os.truncate(model / "model.safetensors", 2 * 64 * 10**9)  # of two bytes each, on no disk
    find_encoder(str(model))
