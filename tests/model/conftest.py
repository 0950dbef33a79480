"""Fixtures of several tests of models: a model in a directory, and torch's kernel for a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from codetune.model import attention
from tests.model.builders import byte_tokenizer, documented_varlen_attn, tiny_model


@pytest.fixture(scope="session")
def _tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny_model("llama", 320).save_pretrained(path)
    byte_tokenizer(bos=True).save_pretrained(path)
    return path


@pytest.fixture
def saved(_tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of a model with its tokenizer, which the test may damage."""
    shutil.copytree(_tiny_llama, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def varlen_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the kernel, which torch has for GPUs only, by a reference of what its documentation says."""
    monkeypatch.setattr(attention, "varlen_attn", documented_varlen_attn)
