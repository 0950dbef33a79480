"""Real rows and real tokenizers through the row stages: both Evol-Instruct files, a small random Llama of each
tokenizer's vocabulary, on a CPU."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from codetune.stages.stage import RunContext
from tests import pipeline
from tests.model.builders import tiny_model
from tests.small_world import context_of

ROWS_OF_EACH_FILE = 30
PROJECT = """\
name: evol
dataset: {path: "evol-*.json", instruction: instruction, response: output}
model: {path: base, chat_format: %s, dtype: float32}
score: {max_length: 1024}
embed: {model: hashing}
select: {clusters: 4, max_ifd: 1.2}
train: {max_length: 512, max_steps: 2, per_device_batch_size: 4, gradient_accumulation_steps: 1, warmup_steps: 0,
        gradient_checkpointing: false, logging_steps: 1}
"""


@pytest.fixture(params=[("deepseek-coder-6.7b-instruct", "deepseek"), ("codellama", "codellama")], ids=lambda p: p[1])
def context(request: pytest.FixtureRequest, shared_data: Path, tmp_path: Path) -> RunContext:
    folder, chat_format = request.param
    for source in sorted((shared_data / "instruct").glob("evol-round*.json")):
        rows = json.loads(source.read_text(encoding="utf-8"))[:ROWS_OF_EACH_FILE]
        (tmp_path / source.name).write_text(json.dumps(rows), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / folder)
    tiny_model("llama", len(tokenizer), hidden=32).save_pretrained(tmp_path / "base")
    for file in (shared_data / "tokenizers" / folder).iterdir():
        if file.name.startswith(("tokenizer", "special", "added")):
            shutil.copy(file, tmp_path / "base")
    (tmp_path / "codetune.yaml").write_text(PROJECT % chat_format, encoding="utf-8")
    return context_of(tmp_path / "codetune.yaml")


def test_evol_instruct_goes_through_score_embed_select_and_train(context: RunContext) -> None:
    scored = pipeline.score(context, None)
    assert scored.rows + sum(scored.refused.values()) == 2 * ROWS_OF_EACH_FILE
    assert scored.rows > 50
    rows: list[dict[str, Any]] = [json.loads(line) for line in context.run.scores.read_text().splitlines()]
    for row in rows:
        if "ifd" in row:
            assert math.isclose(row["ifd"], math.exp(row["nll_conditional"] - row["nll_unconditional"]), rel_tol=1e-12)
            # A model of random weights knows nothing of the language.
            assert math.log(1000) < row["nll_conditional"] < 3 * math.log(32000)
    assert pipeline.embed(context, None).rows == scored.rows
    selected = pipeline.select(context)
    clusters = selected.facts["clusters"]
    assert sum(cluster["taken"] for cluster in clusters) == selected.rows
    assert all(cluster["taken"] == int(cluster["eligible"] * 0.4) for cluster in clusters)
    trained = pipeline.train(context)
    assert (trained.facts["steps"], trained.facts["padding_rate"]) == (2, 0.0)
    tokenizer = AutoTokenizer.from_pretrained(context.run.model)
    assert tokenizer.chat_template
