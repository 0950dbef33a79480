"""The shipped base model is what its recipe says, and loads like any other model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from codetune.data.source import read_examples
from codetune.data.tokens import TrainingTokens, adds_bos, training_tokens
from codetune.demo import pretrain
from codetune.demo.demo_project import SHIPPED_BASE
from codetune.demo.pretrain import draw_text, export_base, train_tokenizer, write_pretraining_project
from codetune.model.load import load_model, load_tokenizer
from codetune.model.model_files import find_model
from codetune.project.file import read_project
from codetune.records import Example, Message

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def project_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(pretrain, "STEPS", 4)
        smaller.setattr(pretrain, "TOKENIZER_TEXTS", 400)
        write_pretraining_project(directory)
    return directory


def test_the_shipped_model_is_small_and_loads_without_a_warning(project_directory: Path) -> None:
    assert (SHIPPED_BASE / "model.safetensors").stat().st_size <= 4 * MEGABYTE
    model = load_model(
        find_model(str(SHIPPED_BASE)), read_project(project_directory / "codetune.yaml", [], {}).model, "cpu"
    )
    tokenizer = load_tokenizer(SHIPPED_BASE)
    assert model.dtype == torch.float32
    assert adds_bos(tokenizer)
    assert tokenizer.chat_template is None
    assert len(tokenizer) == model.config.vocab_size


def test_the_shipped_tokenizer_is_the_one_that_the_recipe_trains() -> None:
    assert train_tokenizer(Random(pretrain.SEED)).to_str(pretty=True) == (SHIPPED_BASE / "tokenizer.json").read_text()


@pytest.mark.parametrize("text", ["def f(numbers):\n    return sum(numbers)\n", "Grüße, 世界\t\0 \n\n x", ""])
def test_the_tokenizer_loses_no_character(text: str) -> None:
    tokenizer = load_tokenizer(SHIPPED_BASE)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_pretraining_project_has_rows_that_are_all_trained_on(project_directory: Path) -> None:
    project = read_project(project_directory / "codetune.yaml", [], {})
    tokenizer = load_tokenizer(project_directory / "untrained")
    rows = list(read_examples(project.dataset, str(project_directory / "texts.jsonl")))
    assert len(rows) == len({row.id for row in rows}) > 100
    for row in rows:
        assert isinstance(row, Example)
        tokens = training_tokens(tokenizer, "tokenizer", row, project.train.max_length, "truncate", "all")
        assert isinstance(tokens, TrainingTokens)
        learned = [token for token, yes in zip(tokens.ids, tokens.learned, strict=True) if yes]
        # The newline behind a docstring is one token with the indentation that follows.
        assert str(tokenizer.decode(learned)).removeprefix("\n") == f"{row.answer}</s>"


def test_code_without_an_instruction_is_the_whole_text(project_directory: Path) -> None:
    tokenizer = load_tokenizer(project_directory / "untrained")
    row = Example("0", (Message("user", pretrain.NO_INSTRUCTION), Message("assistant", "def f(): ...")), "here")
    tokens = training_tokens(tokenizer, "tokenizer", row, 64, "truncate", "all")
    assert isinstance(tokens, TrainingTokens)
    assert tokenizer.decode(list(tokens.ids)) == "<s>def f(): ...</s>"


def test_the_untrained_weights_fit_the_architecture(project_directory: Path) -> None:
    settings = read_project(project_directory / "codetune.yaml", [], {}).model
    model = load_model(find_model(str(project_directory / "untrained")), settings, "cpu")
    drawn = model.model.layers[3].mlp.down_proj.weight
    assert drawn.std().item() == pytest.approx(pretrain.INITIAL_DEVIATION, rel=0.05)
    assert set(model.model.norm.weight.tolist()) == {1.0}


def test_exporting_halves_the_precision_and_nothing_else(project_directory: Path, tmp_path: Path) -> None:
    weights = load_file(project_directory / "untrained" / "model.safetensors")
    trained = project_directory / "runs" / "demo-base" / "model"
    trained.mkdir(parents=True)
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    export_base(project_directory, tmp_path / "base")
    shipped = load_file(tmp_path / "base" / "model.safetensors")
    assert shipped.keys() == weights.keys()
    assert all(np.array_equal(shipped[name], weights[name].astype(np.float16)) for name in weights)
    settings = read_project(project_directory / "codetune.yaml", [], {}).model
    assert load_model(find_model(str(tmp_path / "base")), settings, "cpu").dtype == torch.float32


def test_the_texts_are_of_all_kinds_and_half_of_the_comments_leave_something_out() -> None:
    random = Random(1)
    begins = Counter(draw_text(random)[0].partition("\n")[0].split(" ")[0] for _ in range(2000))
    assert {"(nothing)", "#", "def", "Question:", "Q:"} == set(begins)
    assert begins["Question:"] > begins["def"] > 100


def test_other_arguments_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--ship"]) == 2
    assert "--ship DIR" in capsys.readouterr().err
