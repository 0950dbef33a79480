"""A model in a directory, as the tests of finding and loading one want it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.builders import byte_tokenizer, tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    tiny_model("llama", 320).save_pretrained(path)
    byte_tokenizer(bos=True).save_pretrained(path)
    return path
