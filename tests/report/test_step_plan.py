"""Padding by hand, and on the real rows that the published figures are about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetune.data.source import read_examples
from codetune.data.token_cache import TokenizedRows, write_token_cache
from codetune.model.load import load_tokenizer
from codetune.project.sections import Dataset, Project, Training
from codetune.records import Example
from codetune.report.step_plan import SampleLengths, plan_epochs


def test_the_padding_of_each_mode_and_the_largest_micro_batch() -> None:
    """One step of two micro-batches, of two samples each: (5, 5) and (1, 1), or with packing (5, 1) and (5, 1)."""
    training = Training(
        max_length=8, epochs=1, per_device_batch_size=2, gradient_accumulation_steps=2, pad_mode="dynamic_pack"
    )
    same = SampleLengths(np.array([5, 5, 5, 5]), np.array([2, 2, 2, 2]))
    found = plan_epochs(same, training, 1, 0, 64)
    assert found.padding_rates == {"max_length": 1 - 20 / 32, "dynamic_pad": 0, "dynamic_pack": 0, "paper_pack": 0}
    assert (found.largest.tokens, found.largest.learned) == (10, 4)
    one_long = SampleLengths(np.array([7, 1, 1, 1]), np.array([1, 1, 1, 1]))
    rates = plan_epochs(one_long, training, 1, 0, 64).padding_rates
    assert rates["dynamic_pad"] == 1 - 10 / 16  # the long one's neighbour is padded to 7
    assert rates["paper_pack"] == 0  # 1 + 7 fit into one row of 8


def test_evol_instruct_is_padded_as_published(shared_data: Path, tmp_path: Path) -> None:
    """docs/method.md, section 2; drawn in another order dynamic_pad gives 62.1 to 62.9 %."""
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "deepseek-coder-6.7b-instruct")
    project = Project.model_validate({"model": {"chat_format": "deepseek"}})
    files = Dataset(path="evol", instruction="instruction", response="output")
    read = read_examples(files, str(shared_data / "instruct" / "evol-round*.json"))
    rows = TokenizedRows((row for row in read if isinstance(row, Example)), project, tokenizer)
    lengths = SampleLengths.of(write_token_cache(rows, tmp_path / "tokens"))
    rates = plan_epochs(lengths, project.train, 1, project.seed, 4096).padding_rates
    assert rates["max_length"] == pytest.approx(0.775, abs=0.002)
    assert 0.615 < rates["dynamic_pad"] < 0.635
    assert rates["paper_pack"] == pytest.approx(0.164, abs=0.006)
    assert rates["dynamic_pack"] == 0
