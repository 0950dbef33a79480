"""Lines of metrics: means since the last one, each step once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codetune.training.metrics import Meter, StepFacts, append_line, cut

STEP = StepFacts(
    loss=1.0, learning_rate=0.1, grad_norm=4.0, tokens=60, tokens_seen=80, samples=3, seconds=2.0, operations=30.0,
    possible_operations=40.0,
)  # fmt: skip
OTHER = StepFacts(
    loss=2.0, learning_rate=0.3, grad_norm=2.0, tokens=40, tokens_seen=120, samples=5, seconds=3.0, operations=20.0,
    possible_operations=60.0,
)  # fmt: skip


def test_a_line_holds_means_since_the_last_one() -> None:
    meter = Meter().plus(OTHER, None).after_line().plus(STEP, 700).plus(OTHER, 500)
    # tokens 100 of 200 seen, in 5 seconds
    assert meter.line(3, 0.5) == {
        "step": 3,
        "epoch": 0.5,
        "loss": 1.5,
        "learning_rate": 0.2,
        "grad_norm": 3.0,
        "tokens_per_second": 20.0,
        "samples_per_second": 1.6,
        "padding_rate": 0.5,
        "peak_memory_bytes": 700,
        "mfu": 0.5,  # 50 of 100
        "seconds": 5.0,
    }
    assert meter.since_start.steps == 3
    assert meter.last_loss == 2.0


def test_without_a_known_peak_there_is_no_share_of_it() -> None:
    unknown = replace(STEP, possible_operations=0.0)
    assert Meter().plus(unknown, None).line(1, 0.1)["mfu"] is None


def test_sums_survive_a_checkpoint() -> None:
    meter = Meter().plus(STEP, None).after_line().plus(OTHER, None)
    restored = Meter.restored(json.loads(json.dumps(meter.state())))
    assert restored == meter


@pytest.mark.parametrize(("last_step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_lines_behind_a_checkpoint_are_cut(tmp_path: Path, last_step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut off by a crash
    cut(path, last_step)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept


def test_nothing_to_cut_is_nothing_done(tmp_path: Path) -> None:
    cut(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())
