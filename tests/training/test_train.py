"""Whole trainings on the CPU: exact, continued after any end, and saved as they were trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    CodeGenConfig,
    CTRLConfig,
    GenerationConfig,
    GPT2Config,
    MambaConfig,
    Phi3Config,
    PretrainedConfig,
)

from codetune.data.tokens import TrainingTokens, training_tokens
from codetune.errors import CodetuneError, DataError, ModelError, ProjectError, StaleError
from codetune.model.load import load_model, load_tokenizer
from codetune.project.sections import LoraSettings, Quantization
from codetune.records import Example, Message
from codetune.training.export import export_model
from codetune.training.train import train
from tests.model.builders import byte_tokenizer
from tests.training.tiny import base_model, examples, metrics, project, run

LINE_FIELDS = [
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "samples_per_second",
    "padding_rate",
    "peak_memory_bytes",
    "mfu",
    "seconds",
]
LORA = {"method": "lora"}
QLORA = {"method": "qlora"}
DORA = {"method": "lora", "lora": LoraSettings(rslora=True, dora=True)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


def weights(saved: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(saved.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def causal_over_the_row(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return seen.transpose(1, 2), None


class CountLayers:
    """How often the layers of a model in training run while it is entered, forward and recomputed."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> None:
        def count(module: torch.nn.Module, *_: Any) -> None:
            self.calls += module.training and torch.is_grad_enabled() and type(module).__name__ == "LlamaMLP"

        self._hook = torch.nn.modules.module.register_module_forward_pre_hook(count)

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_runs_all_steps_and_reports_them(base: Path, tmp_path: Path) -> None:
    seen: list[Mapping[str, float | None]] = []
    summary = train(examples(20), project(), base, tmp_path, tmp_path / "saved", seen.append)
    assert (summary.rows, summary.steps, summary.dropped, summary.truncated_rows) == (20, 6, (), 0)
    assert [line["step"] for line in seen] == [1, 2, 3, 4, 5, 6]
    assert all(line["steps"] == 6 for line in seen)
    lines = metrics(tmp_path, times=True)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert list(lines[0]) == LINE_FIELDS
    # means over the steps since the last line
    assert lines[1]["loss"] == pytest.approx((seen[2]["loss"] + seen[3]["loss"]) / 2)
    assert lines[0]["peak_memory_bytes"] is lines[0]["mfu"] is None
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert summary.last_loss == seen[-1]["loss"]


PACKED = {"packed": project()}
OTHER_BATCHES = {
    "padded": project(pad_mode="dynamic_pad"),
    "filled": project(pad_mode="max_length"),
    "paper": project(pad_mode="paper_pack"),
    "sorted": project(pad_mode="dynamic_pad", sort_in_step=True),
    "smaller": project(per_device_batch_size=3, global_batch_size=8),
    "recomputed": project(gradient_checkpointing=True),
    "eager": project().model_copy(update={"model": project().model.model_copy(update={"attention": "eager"})}),
}


@pytest.fixture(scope="module")
def batched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """By how the steps are batched: the run, and its padding rate."""
    directory = tmp_path_factory.mktemp("batched")
    settings = {**PACKED, **OTHER_BATCHES}
    return {name: (directory / name, run(settings[name], base, directory / name).padding_rate) for name in settings}


@pytest.mark.parametrize("name", OTHER_BATCHES)
def test_pad_modes_and_accumulation_learn_the_same(batched: dict[str, tuple[Path, float]], name: str) -> None:
    pairs = list(zip(metrics(batched[name][0]), metrics(batched["packed"][0]), strict=True))
    assert [one["loss"] for one, _ in pairs] == pytest.approx([other["loss"] for _, other in pairs], rel=1e-5)
    assert [one["grad_norm"] for one, _ in pairs] == pytest.approx([other["grad_norm"] for _, other in pairs], rel=1e-4)


def test_an_objective_learns_the_same_in_every_pad_mode_and_another_thing_than_the_others(
    batched: dict[str, tuple[Path, float]], base: Path, tmp_path: Path
) -> None:
    for mode in ("dynamic_pack", "dynamic_pad"):
        run(project(pad_mode=mode, objective="dft"), base, tmp_path / mode)
    pairs = list(zip(metrics(tmp_path / "dynamic_pack"), metrics(tmp_path / "dynamic_pad"), strict=True))
    assert [one["loss"] for one, _ in pairs] == pytest.approx([other["loss"] for _, other in pairs], rel=1e-5)
    assert [one["grad_norm"] for one, _ in pairs] == pytest.approx([other["grad_norm"] for _, other in pairs], rel=1e-4)
    assert all(
        one["loss"] < other["loss"] / 2 for (one, _), other in zip(pairs, metrics(batched["packed"][0]), strict=True)
    )


def test_pad_modes_differ_in_padding(batched: dict[str, tuple[Path, float]]) -> None:
    rates = {name: rate for name, (_, rate) in batched.items()}
    assert rates["packed"] == rates["eager"] == 0 < rates["sorted"] < rates["padded"] < rates["filled"]
    assert 0 < rates["paper"] < rates["padded"]


def test_without_isolation_something_else_is_learned(base: Path, tmp_path: Path) -> None:
    losses = {}
    for isolated in (True, False):
        for mode in ("dynamic_pack", "paper_pack"):
            directory = tmp_path / f"{mode}-{isolated}"
            run(project(pad_mode=mode, pack_isolation=isolated, max_length=512), base, directory)
            losses[mode, isolated] = [line["loss"] for line in metrics(directory)]
    assert losses["dynamic_pack", True] == pytest.approx(losses["paper_pack", True], rel=1e-5)
    for mode in ("dynamic_pack", "paper_pack"):
        assert losses[mode, False] != pytest.approx(losses[mode, True], rel=1e-4)


@pytest.mark.parametrize("pad_mode", ["dynamic_pack", "paper_pack"])
@pytest.mark.parametrize("method", [{}, QLORA], ids=["full", "qlora"])
def test_attention_that_leaks_is_found_before_the_first_step(
    base: Path, tmp_path: Path, pad_mode: str, method: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if a release of transformers stopped to see where samples begin: no mask, and the whole row is seen.
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", causal_over_the_row)
    settings = project(pad_mode=pad_mode, **method)
    leaky = settings.model_copy(update={"model": settings.model.model_copy(update={"attention": "sdpa"})})
    with pytest.raises(ModelError, match=r"see each other .*Set train.pad_mode: dynamic_pad, or model.attention: auto"):
        run(leaky, base, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("method", [{}, LORA, QLORA, DORA], ids=["full", "lora", "qlora", "dora"])
def test_a_continued_training_is_the_unbroken_one_bit_by_bit(
    base: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    settings = project(save_steps=1, keep_checkpoints=9, **method)
    whole = tmp_path / "whole"
    run(settings, base, whole)
    for stopped_at in (1, 3, 5, 6):  # in epoch 1, at its boundary, in epoch 2, at the end
        broken = tmp_path / f"stopped-{stopped_at}"
        shutil.copytree(whole / f"checkpoint-{stopped_at}", broken / f"checkpoint-{stopped_at}")
        shutil.copy(whole / "metrics.jsonl", broken)  # with lines that the stopped training had not come to, or lost
        run(settings, base, broken)
        assert metrics(broken) == metrics(whole)
        assert same(broken / "saved", whole / "saved")


def test_ctrl_c_leaves_a_checkpoint_of_the_step_at_hand(base: Path, tmp_path: Path) -> None:
    run(project(), base, tmp_path / "whole")

    def interrupt(line: Mapping[str, float | None]) -> None:
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(examples(20), project(), base, tmp_path / "stopped", tmp_path / "stopped" / "saved", interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "stopped" / "saved").exists()
    run(project(), base, tmp_path / "stopped")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert same(tmp_path / "stopped" / "saved", tmp_path / "whole" / "saved")


def test_only_the_newest_checkpoints_are_kept(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=1, keep_checkpoints=2), base, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_minutes_bring_checkpoints_but_none_at_the_end(base: Path, tmp_path: Path) -> None:
    run(project(save_minutes=1e-9, keep_checkpoints=9), base, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in range(1, 6)]


def test_a_checkpoint_of_other_settings_or_rows_is_named_and_left(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=2), base, tmp_path)
    with pytest.raises(
        StaleError, match=r"checkpoint-6 .*train.learning_rate 0.001 then, 0.002 now.*add --replace to this command"
    ):
        run(project(save_steps=2, learning_rate=2e-3), base, tmp_path)
    with pytest.raises(StaleError, match="rows 20 then, 19 now"):
        run(project(save_steps=2), base, tmp_path, rows=19)
    run(project(logging_steps=1, save_steps=None, per_device_batch_size=2, global_batch_size=8), base, tmp_path)


def test_with_replace_checkpoints_of_another_training_go_and_those_of_this_one_stay(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=2), base, tmp_path)
    train(examples(20), project(save_steps=2), base, tmp_path, tmp_path / "saved", lambda _: None, replace=True)
    assert (tmp_path / "checkpoint-6").exists()
    other = project(save_steps=4, learning_rate=2e-3)
    train(examples(20), other, base, tmp_path, tmp_path / "saved", lambda _: None, replace=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 6]


def test_max_steps_ends_within_an_epoch_and_again_at_once(base: Path, tmp_path: Path) -> None:
    assert run(project(max_steps=2, save_steps=2), base, tmp_path).steps == 2
    first = weights(tmp_path / "saved")
    summary = run(project(max_steps=2, save_steps=2), base, tmp_path)
    assert summary.steps == 2
    assert all(torch.equal(first[name], tensor) for name, tensor in weights(tmp_path / "saved").items())
    assert [line["step"] for line in metrics(tmp_path)] == [2]


@pytest.mark.parametrize("pad_mode", ["dynamic_pack", "dynamic_pad", "paper_pack"])
def test_a_loss_that_is_not_a_number_names_its_row(tmp_path: Path, pad_mode: str) -> None:
    base = base_model(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    rows = examples(8)
    turns = (Message("user", "hi"), Message("assistant", "µ"))
    rows.insert(3, Example("f" * 16, turns, "rows.jsonl:9"))
    tokens = training_tokens(tokenizer, "deepseek", rows[3], 99, "truncate", "all")
    assert isinstance(tokens, TrainingTokens)
    others = {token for row in [*rows[:3], *rows[4:]] for token in tokenizer(row.answer).input_ids}
    spoiled = next(token for token in tokens.ids if token not in others and token in tokenizer("µ").input_ids)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.embed_tokens.weight.data[spoiled] = float("nan")
    model.save_pretrained(base)
    with pytest.raises(CodetuneError, match=r"loss is not a finite number in step 1 of 4, on the rows f{16}\. "):
        train(rows, project(pad_mode=pad_mode), base, tmp_path, tmp_path / "saved", lambda _: None)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("pad_mode", ["dynamic_pack", "dynamic_pad"])
def test_weights_that_are_not_finite_are_found_by_the_loss_of_the_first_step(
    tmp_path: Path, pad_mode: str, method: str
) -> None:
    base = base_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.data[:] = float("nan")
    model.save_pretrained(base)
    message = r"loss is not a finite number in step 1 of 6, on the rows [0-9a-f]{16}"
    with pytest.raises(CodetuneError, match=message) as failure:
        run(project(pad_mode=pad_mode, method=method), base, tmp_path)
    assert failure.value.exit_status == 1
    assert "float32" not in str(failure.value)  # it is


def test_a_wider_number_format_is_advised_where_there_is_one(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.data[:] = float("inf")
    model.save_pretrained(base)
    with pytest.raises(CodetuneError, match=r"or set model\.dtype: float32\."):
        run(project("bfloat16"), base, tmp_path)


@pytest.mark.parametrize("pad_mode", ["paper_pack", "dynamic_pad"])
def test_a_pad_token_that_the_model_does_not_know_is_not_used(tmp_path: Path, pad_mode: str) -> None:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.save_pretrained(tmp_path / "base")
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=len(tokenizer), pad_token_id=32000, **shape, **dropped)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    assert run(project(pad_mode=pad_mode), tmp_path / "base", tmp_path / "run").steps == 6


def test_a_configuration_that_fits_no_model_is_a_model_error(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": 32000}))
    with pytest.raises(ModelError, match=r"base cannot be loaded \(AssertionError: Padding_idx"):
        run(project(), base, tmp_path / "run")


def test_rows_that_are_cut_or_dropped_are_counted(base: Path, tmp_path: Path) -> None:
    cut = run(project(max_length=60, max_steps=1), base, tmp_path / "cut")
    assert (cut.rows, len(cut.dropped)) == (20, 0)
    assert cut.truncated_rows > 0
    assert cut.lost_tokens >= cut.truncated_rows
    whole = run(project(max_steps=1), base, tmp_path / "whole")
    assert (whole.truncated_rows, whole.lost_tokens, whole.lost_share) == (0, 0, 0)
    kept = run(project(max_length=60, epochs=1, logging_steps=99), base, tmp_path / "epoch").tokens
    assert cut.lost_share == pytest.approx(cut.lost_tokens / (kept + cut.lost_tokens))
    dropped = run(project(max_length=60, max_steps=1, too_long="drop"), base, tmp_path / "dropped")
    assert len(dropped.dropped) == cut.truncated_rows
    assert dropped.rows == 20 - cut.truncated_rows
    assert dropped.lost_tokens > cut.lost_tokens + 59 * cut.truncated_rows
    assert {refusal.reason for refusal in dropped.dropped} == {"longer than 60 tokens"}
    with pytest.raises(DataError, match=r"No row is left to train on: 20 dropped \(no answer token within 9 tokens\)"):
        run(project(max_length=9), base, tmp_path / "none")


def test_an_interruption_while_the_model_is_saved_waits_for_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        export_model(*arguments)

    monkeypatch.setattr("codetune.training.train.export_model", interrupted)
    assert run(project(max_steps=1), base, tmp_path).steps == 1
    assert weights(tmp_path / "saved")


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_an_architecture_without_torchs_attention_is_trained_and_saved(attention: str, tmp_path: Path) -> None:
    settings = project(pad_mode="dynamic_pad", max_steps=1)
    asked = settings.model_copy(update={"model": settings.model.model_copy(update={"attention": attention})})
    assert run(asked, base_model(tmp_path / "base", "gemma2"), tmp_path).steps == 1
    assert weights(tmp_path / "saved")


def test_the_saved_model_carries_format_stops_and_the_asked_number_format(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(project("bfloat16", max_steps=2), base, tmp_path)
    assert capfd.readouterr().out == ""
    saved = tmp_path / "saved"
    assert {tensor.dtype for tensor in weights(saved).values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(saved).dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        "### Instruction:\nhi\n### Response:\n"
    )
    assert GenerationConfig.from_pretrained(saved).eos_token_id == [tokenizer.eos_token_id]
    assert json.loads((saved / "config.json").read_text())["use_cache"]
    assert not list(saved.glob("*.bin"))


def test_bfloat16_keeps_float32_weights_and_leaves_later_trainings_alone(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=6), base, tmp_path / "before")
    run(project("bfloat16", save_steps=6), base, tmp_path / "rounded")
    run(project(save_steps=6), base, tmp_path / "after")
    assert same(tmp_path / "before" / "saved", tmp_path / "after" / "saved")
    kept = weights(tmp_path / "rounded" / "checkpoint-6")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    pairs = list(zip(metrics(tmp_path / "rounded"), metrics(tmp_path / "before"), strict=True))
    assert all(one["loss"] == pytest.approx(other["loss"], rel=0.05) for one, other in pairs)
    assert any(one["loss"] != other["loss"] for one, other in pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_saved_without_asking_any_hub_and_load_over_their_base(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(project(dtype, save_steps=1, **LORA), base, tmp_path)
    saved = tmp_path / "saved"
    assert (saved / "adapter_model.safetensors").is_file()
    assert not (saved / "model.safetensors").exists()
    tuned = AutoModelForCausalLM.from_pretrained(saved).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert not torch.allclose(tuned(ids).logits.float(), plain(ids).logits, atol=1e-4)
    assert AutoTokenizer.from_pretrained(saved).chat_template


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_over_a_quantized_base_learn_nearly_what_those_over_the_whole_one_do(
    base: Path, tmp_path: Path, bits: int
) -> None:
    settings = {"epochs": 6, "learning_rate": 1e-2, "lora": LoraSettings(dropout=0.0)}
    run(project(**settings, **LORA), base, tmp_path / "whole")
    run(project(quantization=Quantization(bits=bits), **settings, **QLORA), base, tmp_path / "quantized")
    whole, quantized = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "quantized"))
    assert quantized[-1] < quantized[0] - 0.5
    assert quantized == pytest.approx(whole, rel={4: 0.1, 8: 0.02}[bits])
    assert quantized != whole
    assert (tmp_path / "quantized" / "saved" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("method", [LORA, QLORA, DORA], ids=["lora", "qlora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_whole_and_answers_as_its_adapters_over_their_base_do(
    base: Path, tmp_path: Path, method: dict[str, Any], dtype: str
) -> None:
    summary = run(project(dtype, merge=True, epochs=6, learning_rate=1e-2, **method), base, tmp_path)
    saved = tmp_path / "saved"
    assert not (saved / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(saved).eval()
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert {tensor.dtype for tensor in weights(saved).values()} == {getattr(torch, dtype)}
    assert not [name for name in weights(saved) if "lora" in name]
    # transformers leaves the lengths of DoRA as they were before the training; codetune reads them, as peft does.
    adapted = AutoModelForCausalLM.from_pretrained(saved / "adapter").eval()
    adapted = load_model(saved / "adapter", project(dtype).model, "cpu") if method == DORA else adapted
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        one, other, before = (model(ids).logits.float() for model in (merged, adapted, plain))
    assert (other - before).norm() > 0.2 * other.norm()
    # Adapters over 4 bits were trained with the rounded base, which is what is merged; adapter/ names the whole one.
    tolerance = {"float32": 1e-5, "bfloat16": 0.02}[dtype] if method != QLORA else 0.5
    assert (one - other).norm() < tolerance * other.norm()
    assert AutoTokenizer.from_pretrained(saved).chat_template
    assert GenerationConfig.from_pretrained(saved).eos_token_id
    assert summary.last_loss is not None


@pytest.mark.parametrize("pad_mode", ["dynamic_pack", "dynamic_pad"])
def test_embeddings_and_head_can_have_adapters(tmp_path: Path, pad_mode: str, recwarn: pytest.WarningsRecorder) -> None:
    targets = LoraSettings(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"])
    summary = run(project(pad_mode=pad_mode, lora=targets, **LORA), base_model(tmp_path / "base"), tmp_path / "run")
    assert summary.steps == 6
    assert any("lora_embedding_A" in name for name in weights(tmp_path / "run" / "saved"))
    assert not [warning for warning in recwarn if "embedding" in str(warning.message)]


def test_merging_and_reporting_change_nothing_that_is_learned(base: Path, tmp_path: Path) -> None:
    run(project(save_steps=3, **LORA), base, tmp_path)
    run(project(save_steps=3, merge=True, logging_steps=1, **LORA), base, tmp_path)  # continues
    assert (tmp_path / "saved" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_activations_are_recomputed_where_the_project_says_so(base: Path, tmp_path: Path, method: str) -> None:
    calls = {}
    for recomputes in (False, True):
        counted, settings = CountLayers(), project(gradient_checkpointing=recomputes, method=method, max_steps=1)
        with counted:
            run(settings, base, tmp_path / f"{recomputes}")
        calls[recomputes] = counted.calls
    assert calls[True] == 2 * calls[False] > 0


def test_memory_that_runs_out_is_an_error_that_counts_tokens_and_loses_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(project(), base, tmp_path / "whole")
    settings = project(save_steps=2)
    real, calls = torch.nn.functional.scaled_dot_product_attention, iter(range(10**6))
    steps: list[float | None] = []
    other, saved = tmp_path / "other", tmp_path / "saved"

    def full(*states: torch.Tensor, **options: Any) -> torch.Tensor:
        next(calls)
        if len(steps) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(*states, **options)

    with monkeypatch.context() as patched:
        patched.setattr("codetune.model.attention.scaled_dot_product_attention", full)
        with pytest.raises(CodetuneError) as failure:
            train(examples(20), settings, base, tmp_path, tmp_path / "saved", lambda line: steps.append(line["step"]))
    assert failure.value.exit_status == 1
    found = re.search(r"memory is full in step 4, with (\d+) tokens of 4 samples in a micro-batch", str(failure.value))
    assert found is not None
    assert 120 <= int(found[1]) <= 440
    assert "train.per_device_batch_size" in str(failure.value)
    assert "train.gradient_checkpointing: true" in str(failure.value)
    with monkeypatch.context() as patched:
        patched.setattr("codetune.model.attention.scaled_dot_product_attention", full)
        steps.clear()
        with pytest.raises(CodetuneError, match=r"Either lower train.per_device_batch_size \(a step learns from"):
            train(examples(20), project(global_batch_size=8), base, other, saved, lambda line: steps.append(0))
    # What it says to do: smaller micro-batches, as many samples a step, and the same training goes on.
    smaller = project(save_steps=2, per_device_batch_size=2, gradient_accumulation_steps=4)
    run(smaller, base, tmp_path)
    pairs = zip(metrics(tmp_path), metrics(tmp_path / "whole"), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-5) for one, other in pairs)


@pytest.mark.parametrize(
    ("where", "activity"),
    [
        ("torch.optim.AdamW.step", "the weights are updated"),
        ("codetune.training.build_model.load_model", "the model is loaded"),
    ],
)
def test_memory_that_does_not_hold_the_weights_has_an_error_of_its_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, activity: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(where, full)
    with pytest.raises(CodetuneError, match=rf"memory is full while {activity}.*train.method: lora or qlora.*fsdp"):
        run(project(), base, tmp_path)


def test_a_program_error_is_not_taken_for_a_lack_of_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("codetune.training.loss.cross_entropy", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(project(), base, tmp_path)


def test_lines_of_metrics_reach_tensorboard(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run(project(report_to=["tensorboard"]), base, tmp_path)
    (written,) = tmp_path.rglob("events.out.tfevents.*")
    content = written.read_bytes()
    assert all(name in content for name in (b"train/loss", b"train/grad_norm", b"train/tokens_per_second"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_an_error_with_the_command_that_installs_it(
    base: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (name, f"{name}X"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ProjectError, match=rf"report_to names {name}.*pip install {name}"):
        run(project(report_to=[name]), base, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_samples_that_do_not_fit_the_model_are_errors(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 50}))
    with pytest.raises(ProjectError, match=r"the model's window 50.*Set train.max_length: 50"):
        run(project(), base, tmp_path / "train")
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match=r"a tokenizer with the token 312 .*, and its model has 312 embeddings"):
        run(project(), base, tmp_path / "train")


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({"max_steps": 1}, r"codetune train \(it starts again: it has no checkpoint\)"),
        ({"max_steps": 3, "save_steps": 2}, r"\(it continues from the checkpoint of step 2\)"),
    ],
    ids=["no checkpoint", "one checkpoint"],
)
def test_a_disk_without_room_for_the_model_promises_no_checkpoint_that_is_not_there(
    base: Path, tmp_path: Path, method: dict[str, str], steps: dict[str, int], told: str
) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "generation_config.json").symlink_to("/dev/full")
    with pytest.raises(CodetuneError, match=rf"saved cannot be written .*{told}"):
        run(project(**steps, **method), base, tmp_path)


def test_what_is_to_be_known_is_told_before_the_first_step(base: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    def train_to(steps: int) -> None:
        def notify(kind: str, text: str) -> None:
            told.append((kind, text))

        def report(line: Mapping[str, float | None]) -> None:
            told.append(("step", str(line["step"])))
            if line["step"] == steps:
                os.kill(os.getpid(), signal.SIGINT)

        settings = project(warmup_steps=6, learning_rate=5e-8, save_steps=2)
        train(examples(20), settings, base, tmp_path, tmp_path / "saved", report, notify=notify)

    with pytest.raises(KeyboardInterrupt):
        train_to(3)
    assert [kind for kind, _ in told] == ["warning", "warning", "activity", "activity", "step", "step", "step", "note"]
    assert told[-1][1].startswith("Stops after this step, with a checkpoint.")
    assert told[0][1].startswith("train.learning_rate is 5e-08.")
    assert told[1][1].startswith("train.warmup_steps is 6, and the training has 6 steps")
    told.clear()
    train_to(99)
    assert told[:3] == [
        ("note", "Continues from the checkpoint of step 3 of 6"),
        ("activity", "loading the model"),
        ("activity", "training"),
    ]
    assert told[3] == ("step", "4")


def test_the_files_of_a_checkpoint_have_the_usual_mode(base: Path, tmp_path: Path) -> None:
    run(project(max_steps=1, save_steps=1, **LORA), base, tmp_path)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "checkpoint-1").iterdir()}
    assert modes == {(tmp_path / "metrics.jsonl").stat().st_mode & 0o777}


def test_a_disk_that_fills_up_is_an_error_and_loses_nothing(base: Path, tmp_path: Path) -> None:
    def fill(line: Mapping[str, float | None]) -> None:
        if line["step"] == 4:
            full = tmp_path / "checkpoint-4"
            full.mkdir()
            (full / "optimizer.pt").symlink_to("/dev/full")

    settings = project(save_steps=2)
    with pytest.raises(CodetuneError, match=r"checkpoint-4 cannot be .*\(it continues from the checkpoint of step 2\)"):
        train(examples(20), settings, base, tmp_path, tmp_path / "saved", fill)
    run(settings, base, tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 6]


def test_float16_needs_a_gpu(base: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ProjectError, match=r"float16, and there is no GPU.*bfloat16 or float32"):
        run(project("float16"), base, tmp_path)


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}


def with_tokenizer(directory: Path, config: PretrainedConfig) -> Path:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.save_pretrained(directory)
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def test_a_network_without_attention_learns_with_padding(tmp_path: Path) -> None:
    config = MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4)
    base = with_tokenizer(tmp_path / "base", config)
    assert run(project(pad_mode="dynamic_pad", max_steps=1), base, tmp_path / "run").steps == 1


def test_a_configuration_without_a_pad_token_does(tmp_path: Path) -> None:
    config = CodeGenConfig(
        n_embd=32, n_layer=2, n_head=4, rotary_dim=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    base = with_tokenizer(tmp_path / "base", config)
    assert run(project(pad_mode="dynamic_pad", max_steps=1), base, tmp_path / "run").steps == 1


def test_an_architecture_without_activation_checkpointing_is_an_error(tmp_path: Path) -> None:
    config = CTRLConfig(n_embd=32, n_layer=2, n_head=4, dff=64, resid_pdrop=0.0, embd_pdrop=0.0)
    base = with_tokenizer(tmp_path / "base", config)
    with pytest.raises(ModelError, match=r"CTRLLMHeadModel.*Set train\.gradient_checkpointing: false"):
        run(project(pad_mode="dynamic_pad", gradient_checkpointing=True), base, tmp_path / "run")


@pytest.mark.parametrize("pad_mode", ["dynamic_pack", "dynamic_pad", "max_length"])
def test_samples_that_change_each_others_positions_are_refused(tmp_path: Path, pad_mode: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 64}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 16.0, **factors}
    config = Phi3Config(
        **TINY, max_position_embeddings=1024, original_max_position_embeddings=64, rope_parameters=rope, pad_token_id=2
    )
    base = with_tokenizer(tmp_path / "base", config)
    with pytest.raises(ProjectError, match=r"more than 64 tokens, and here one has \d+.*Set train\.max_length: 64"):
        run(project(pad_mode=pad_mode), base, tmp_path / "run")
    assert run(project(pad_mode=pad_mode, max_length=64, max_steps=1), base, tmp_path / "short").steps == 1
    if pad_mode != "max_length":
        alone = project(pad_mode=pad_mode, per_device_batch_size=1, max_steps=1)
        assert run(alone, base, tmp_path / "alone").steps == 1
