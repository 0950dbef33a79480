"""A tiny base model, rows and a project: a whole training in half a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from codetune.project.sections import Model, Project, Training
from codetune.records import Example, Message, content_id
from codetune.training.summary import TrainingSummary
from codetune.training.train import train
from tests.model.builders import byte_tokenizer, tiny_model

TIMES = {"tokens_per_second", "samples_per_second", "mfu", "seconds"}


def base_model(directory: Path, architecture: str = "llama") -> Path:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.save_pretrained(directory)
    tiny_model(architecture, len(tokenizer), hidden=32).save_pretrained(directory)
    return directory


def examples(count: int, seed: int = 0) -> list[Example]:
    """Rows of 30 to 110 tokens, all different."""
    drawn = random.Random(seed)
    rows = []
    for number in range(count):
        body = "\n    ".join("abcdefgh"[drawn.randrange(8)] * drawn.randrange(1, 9) for _ in range(drawn.randrange(9)))
        turns = (Message("user", f"Write number {number}."), Message("assistant", f"def f{number}():\n    {body}"))
        rows.append(Example(content_id(turns), turns, f"rows.jsonl:{number + 1}"))
    return rows


def project(dtype: str = "float32", **settings: Any) -> Project:
    """20 rows make 3 steps an epoch, of 8, 8 and 4 rows."""
    plain = {
        "epochs": 2,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "logging_steps": 2,
        "save_minutes": None,
        "gradient_checkpointing": False,
        "max_length": 128,
    }
    return Project(seed=7, model=Model(dtype=dtype, chat_format="deepseek"), train=Training(**{**plain, **settings}))


def run(settings: Project, base: Path, directory: Path, rows: int = 20) -> TrainingSummary:
    return train(examples(rows), settings, base, directory, directory / "saved", lambda _: None)


def metrics(directory: Path, *, times: bool = False) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if times or name not in TIMES} for line in lines]
