"""Compiled decoder layers learn what the others do, in one graph for all lengths. Here torch traces with backends that
need no compiler; `tests/gpu` compiles, and `tests/performance/train.py` shows losses and graphs beside the speed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.nn.attention.varlen import _varlen_attn
from transformers import CTRLConfig, PreTrainedModel

from codetune.errors import CodetuneError, ModelError, ProjectError
from codetune.launch.devices import compiler_fault
from codetune.model.adapters import add_adapters, base_network
from codetune.model.attention import VARLEN, packed_inputs
from codetune.project.sections import LoraSettings, Project, Training
from codetune.report.doctor import find_compiler
from codetune.training.build_model import BaseModel, prepare_model, require_preparable
from codetune.training.compilation import compile_layers, explain_uncompilable, is_compiled, require_compilable
from codetune.training.loss import AnswerLoss
from codetune.training.parallelism import ParallelStrategy
from codetune.training.train import train
from tests.model.builders import documented_varlen_attn, tiny_model
from tests.training.samples import SAMPLES, by_hand, collated, gradient
from tests.training.test_loss import VOCABULARY, loss_of
from tests.training.test_train import same
from tests.training.tiny import base_model, examples, metrics, project

# torch's own: it imports what it deprecates, and looks at gradients while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
ADAPTERS = LoraSettings(dropout=0.0)
PROBE = 1  # graph, of the function with which a compiler is looked for
LENGTHS = ([5, 9, 20], [30, 4], [9, 9, 9, 9, 30], [2, 3], [40, 41])


@pytest.fixture(autouse=True)
def _without_a_compiler() -> Iterator[None]:
    """Graphs are made, and run as they are."""
    torch.compiler.set_default_backend("eager")
    compiler_fault.cache_clear()
    yield
    torch.compiler.set_default_backend("inductor")
    torch.compiler.reset()
    compiler_fault.cache_clear()


class CountGraphs:
    def __enter__(self) -> CountGraphs:
        self._before = counters["stats"]["unique_graphs"]
        return self

    def __exit__(self, *_: Any) -> None:
        self.made = counters["stats"]["unique_graphs"] - self._before


def compiled_model(pad_mode: str, architecture: str = "llama", **settings: Any) -> PreTrainedModel:
    chosen = project(compile="always", pad_mode=pad_mode, **settings)
    model = prepare_model(tiny_model(architecture, VOCABULARY).train(), chosen, BaseModel(Path(), "float32", "alone"))
    compile_layers(base_network(model))
    return model  # type: ignore[return-value]


@pytest.mark.parametrize("mode", ["dynamic_pad", "dynamic_pack"])
def test_loss_and_gradient_are_those_of_each_sample_alone_in_two_graphs_for_all_lengths(mode: str) -> None:
    """One graph is for micro-batches of a single sample, which is not padded, and needs no mask where it is packed."""
    alone = tiny_model("llama", VOCABULARY).train()
    loss = by_hand(alone)
    expected = gradient(alone, loss)
    model = compiled_model(mode)
    losses = AnswerLoss(model, 3 * VOCABULARY)
    with CountGraphs() as graphs:
        for per_micro_batch in (5, 2, 1, 3):
            found = loss_of(losses, model, collated(mode, per_micro_batch))
            assert found.item() == pytest.approx(loss.item(), rel=1e-5)
            assert (gradient(model, found) - expected).norm() < 1e-5 * expected.norm()
    assert graphs.made == 2


def test_recomputed_activations_have_the_same_gradient_where_forward_and_backward_are_traced() -> None:
    torch.compiler.set_default_backend("aot_eager")
    alone = tiny_model("llama", VOCABULARY).train()
    expected = gradient(alone, by_hand(alone))
    model = compiled_model("dynamic_pack", gradient_checkpointing=True)
    with CountGraphs() as graphs:
        found = loss_of(AnswerLoss(model, 3 * VOCABULARY), model, collated("dynamic_pack", len(SAMPLES)))
        assert (gradient(model, found) - expected).norm() < 1e-5 * expected.norm()
    assert graphs.made == 1


def test_the_attention_of_gpus_is_part_of_the_graph_whatever_is_packed() -> None:
    """torch's kernel runs on GPUs only: here its operator has the documented computation."""

    def documented(*given: Any) -> tuple[torch.Tensor, ...]:
        query, _, scale, window, grouped = given[0], *given[7:11]
        attended = documented_varlen_attn(*given[:7], scale=scale, window_size=tuple(window), enable_gqa=grouped)
        return attended, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)

    _varlen_attn.register_kernel("cpu")(documented)
    model, plain = tiny_model("llama", VOCABULARY), tiny_model("llama", VOCABULARY)
    model.set_attn_implementation(VARLEN)
    compile_layers(model)
    with CountGraphs() as graphs, torch.no_grad():
        for lengths in LENGTHS:
            samples = [torch.arange(length) for length in lengths]
            packed = model(**packed_inputs(samples), use_cache=False).logits[0]
            assert torch.allclose(packed, torch.cat([plain(one[None]).logits[0] for one in samples]), atol=1e-4)
    assert graphs.made == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


def test_adapters_have_the_same_gradient_in_one_graph_more_for_the_first_layer_whose_input_has_none() -> None:
    plain = add_adapters(tiny_model("llama", VOCABULARY).train(), "lora", ADAPTERS, project().seed)
    losses = AnswerLoss(base_network(plain), 3 * VOCABULARY)
    expected = gradient(base_network(plain), loss_of(losses, plain, collated("dynamic_pad")))
    model = compiled_model("dynamic_pad", method="lora", lora=ADAPTERS)
    with CountGraphs() as graphs:
        found = loss_of(AnswerLoss(base_network(model), 3 * VOCABULARY), model, collated("dynamic_pad", len(SAMPLES)))
        assert (gradient(model, found) - expected).norm() < 1e-5 * expected.norm()
    assert graphs.made == 2


def test_a_compiled_training_learns_the_same_and_continues_as_the_unbroken_one(base: Path, tmp_path: Path) -> None:
    """Held-out rows, and the checks before the first step, add no graph to that of the steps."""
    plain, whole, broken = (tmp_path / name for name in ("plain", "whole", "broken"))
    settings: dict[str, Any] = {"epochs": 1, "save_steps": 2, "keep_checkpoints": 9, "logging_steps": 1}
    learn(project(compile="never", **settings), base, plain)
    with CountGraphs() as graphs:
        learn(project(compile="always", **settings), base, whole)
    assert graphs.made == 1 + PROBE
    shutil.copytree(whole / "checkpoint-2", broken / "checkpoint-2")
    shutil.copy(whole / "metrics.jsonl", broken)
    learn(project(compile="always", **settings), base, broken)
    assert metrics(broken) == metrics(whole)
    assert same(broken / "saved", whole / "saved")
    for name in ("loss", "holdout_loss"):
        expected, found = ([line[name] for line in metrics(run) if name in line] for run in (plain, whole))
        assert found == pytest.approx(expected, rel=1e-5) != []
    for directory in ("saved", "checkpoint-2"):
        assert names_of_weights(plain / directory) == names_of_weights(whole / directory) != []


def learn(settings: Project, base: Path, directory: Path) -> None:
    rows = examples(24)
    train(rows[:20], settings, base, directory, directory / "saved", lambda _: None, holdout=rows[20:])


def names_of_weights(directory: Path) -> list[str]:
    return sorted(name for file in directory.glob("*model.safetensors") for name in load_file(file))


@pytest.mark.parametrize(
    ("change", "strategy", "fault"),
    [
        ({}, "fsdp", "launch.strategy is fsdp, .* Set launch.strategy: ddp"),
        ({}, "zero2", "launch.strategy is zero2, .* Set launch.strategy: ddp"),
        ({"train": {"method": "lora", "merge": True, "lora": {"dora": True}}}, "alone", "Set train.lora.dora: false"),
        ({"model": {"attention": "flash"}}, "alone", "model.attention is flash, .* Set model.attention: varlen"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(
    change: dict[str, Any], strategy: ParallelStrategy, fault: str
) -> None:
    settings = Project.model_validate({**change, "train": {**change.get("train", {}), "compile": "always"}})
    with pytest.raises(ProjectError, match=f"train.compile is always, and .*{fault}. Or set train.compile: never"):
        require_compilable(settings, strategy, "cpu")


def test_a_machine_without_a_compiler_is_an_error_before_the_training_and_a_finding_of_the_doctor() -> None:
    torch.compiler.set_default_backend("inductor")
    asked = Project(train=Training(compile="always"))
    expected = r"No working C\+\+ compiler .*no-such-compiler.* apt install g\+\+.* Or set train.compile: never"
    with inductor.patch("cpp.cxx", (None, "no-such-compiler")):
        with pytest.raises(ProjectError, match=expected):
            require_compilable(asked, "alone", "cpu")
        (finding,) = find_compiler(asked)
    assert (finding.name, finding.state) == ("torch.compile", "wrong")
    assert "no-such-compiler" in finding.found


def test_an_architecture_without_layers_to_compile_is_an_error_before_its_weights_are_read(tmp_path: Path) -> None:
    CTRLConfig(n_embd=32, n_layer=2, n_head=4, dff=64).save_pretrained(tmp_path)
    asked = project(compile="always", pad_mode="dynamic_pad")
    with pytest.raises(ModelError, match=r"CTRLLMHeadModel has none .*Set train.compile: never"):
        require_preparable(asked, BaseModel(tmp_path, "float32", "alone"))


def test_a_layer_that_is_no_single_graph_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    """peft's DoRA asks for the class of a weight, which torch cannot trace."""
    model = add_adapters(tiny_model("llama", VOCABULARY), "lora", LoraSettings(dora=True), 0)
    compile_layers(base_network(model))
    expected = r"cannot make a layer one graph .*Set train.compile: never; the training starts again"
    with pytest.raises(CodetuneError, match=expected), explain_uncompilable(tmp_path, lambda: False):
        model(**packed_inputs([torch.arange(5)]))


def test_a_compiler_that_an_interruption_ends_is_no_error_of_the_model(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of the terminal, and so the compiler."""
    with pytest.raises(KeyboardInterrupt), explain_uncompilable(tmp_path, lambda: True):
        raise TorchDynamoException("C++ compile error")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_compiles_nowhere_as_long_as_no_record_shows_that_it_pays(device: str) -> None:
    asked = {value: is_compiled(project(compile=value), "alone", device) for value in ("auto", "never", "always")}
    assert asked == {"auto": False, "never": False, "always": True}
