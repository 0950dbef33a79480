"""What several tests of models want: one in a directory, and torch's kernel where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.model import attention
from tests.model.builders import byte_tokenizer, documented_varlen_attn, tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    tiny_model("llama", 320).save_pretrained(path)
    byte_tokenizer(bos=True).save_pretrained(path)
    return path


@pytest.fixture
def varlen_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its documentation has it; torch has it for GPUs only."""
    monkeypatch.setattr(attention, "varlen_attn", documented_varlen_attn)
