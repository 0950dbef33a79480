"""Scoring and embedding by several processes, for real: the bytes are those of one, and no end loses a row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from codetune.errors import BusyError
from codetune.stages import score
from codetune.stages.runner import stage_settings
from codetune.stages.stage import Recipe, StageRequest
from codetune.store.locks import locked
from tests import pipeline
from tests.forks import Forks, slow
from tests.small_world import children, context_of, make_small_world, run_codetune, run_codetune_here

SMALL = ("--set", "score.tokens_per_batch=128", "--set", "embed.batch_size=4")
FLAGS = {"score__tokens_per_batch": 128, "embed__batch_size": 4}
ARTEFACTS = {"score": "scores.jsonl", "embed": "embeddings.npy"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the small world."""
    context = context_of(make_small_world(tmp_path_factory.mktemp("alone")), **FLAGS)
    return {
        "score": pipeline.score(context, None).artefact.read_bytes(),
        "embed": pipeline.embed(context, None).artefact.read_bytes(),
    }


def artefact(directory: Path, stage: str) -> Path:
    return directory / "runs/small" / ARTEFACTS[stage]


@pytest.mark.parametrize("stage", ARTEFACTS)
def test_two_processes_give_the_bytes_of_one(stage: str, tmp_path: Path, alone: dict[str, bytes]) -> None:
    make_small_world(tmp_path)
    done = run_codetune(stage, "--json", *SMALL, "--set", "launch.processes=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 60
    assert artefact(tmp_path, stage).read_bytes() == alone[stage]
    assert not artefact(tmp_path, stage).with_name(f"{ARTEFACTS[stage]}.parts").exists()


def test_shards_of_several_processes_have_a_log_each_and_give_the_bytes_of_one(
    tmp_path: Path, alone: dict[str, bytes]
) -> None:
    project = make_small_world(tmp_path)
    context = context_of(project, **FLAGS, launch__processes=2)
    assert pipeline.score(context, (0, 2)).state == "partial"
    logs = sorted(context.run.parts(context.run.scores).glob("*.log"))
    assert [log.name for log in logs] == ["0-of-4.log", "2-of-4.log"]
    assert all(log.stat().st_size > 0 for log in logs)
    assert pipeline.score(context_of(project, **FLAGS), (1, 2)).state == "done"
    assert artefact(tmp_path, "score").read_bytes() == alone["score"]


@pytest.mark.parametrize("name", ["embeddings.npy", "embeddings.ids"])
def test_embeddings_with_a_damaged_file_are_made_again(name: str, tmp_path: Path) -> None:
    project = make_small_world(tmp_path, 6)
    made = context_of(project).run.directory / name
    pipeline.embed(context_of(project))
    whole = made.read_bytes()
    made.write_bytes(b"junk")
    pipeline.embed(context_of(project))
    assert made.read_bytes() == whole


def test_a_part_of_a_shard_that_is_somebody_elses_shard_is_not_done_twice_at_once(tmp_path: Path) -> None:
    context = context_of(make_small_world(tmp_path), **FLAGS, launch__processes=2)
    with locked(context.run, "score", (2, 4)), pytest.raises(BusyError, match="is already running score-2-of-4"):
        pipeline.score(context, (0, 2))


def test_a_killed_worker_is_named_and_the_command_run_again_finishes(
    tmp_path: Path, alone: dict[str, bytes], forks: Forks, capfd: pytest.CaptureFixture[str]
) -> None:
    make_small_world(tmp_path)
    process = forks.start(tmp_path, slow(0.3), "codetune", "score", *SMALL, "--set", "launch.processes=2")
    parts = artefact(tmp_path, "score").with_name("scores.jsonl.parts")
    while process.poll() is None and not any(log.stat().st_size for log in parts.glob("*.log")):
        time.sleep(0.005)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    told = process.communicate()[1]
    assert process.returncode == 1
    assert "Process 1 of 2" in told
    assert "was killed by SIGKILL" in told
    assert not artefact(tmp_path, "score").exists()
    capfd.readouterr()
    assert run_codetune_here("score", "--json", *SMALL, cwd=tmp_path) == 0
    assert json.loads(capfd.readouterr().out)["reused"] > 0
    assert artefact(tmp_path, "score").read_bytes() == alone["score"]


def test_several_machines_each_do_a_shard_and_the_last_one_merges(
    tmp_path: Path,
    alone: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_small_world(tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    states = []
    for rank in range(2):
        monkeypatch.setenv("NODE_RANK", str(rank))
        capfd.readouterr()
        assert run_codetune_here("score", "--json", *SMALL, "--set", "launch.nodes=2", cwd=tmp_path) == 0
        states.append(json.loads(capfd.readouterr().out)["state"])
    assert states == ["partial", "done"]
    assert artefact(tmp_path, "score").read_bytes() == alone["score"]


def test_the_ranks_of_torchrun_do_it_together(tmp_path: Path, alone: dict[str, bytes]) -> None:
    make_small_world(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    done = subprocess.run(
        [*torchrun, "codetune", "score", "--json", *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "done"
    assert artefact(tmp_path, "score").read_bytes() == alone["score"]


def test_what_a_gpu_has_room_for_is_looked_at_once_and_kept_with_the_run(tmp_path: Path) -> None:
    project = make_small_world(tmp_path)
    asked = []

    def tokens(device: str = "cuda", **flags: Any) -> int:
        context = context_of(project, **{"score__tokens_per_batch": "auto"} | flags)
        settings = stage_settings(context, score.SCORE, StageRequest())
        recipe = Recipe("score", context.run.scores, settings, {"dataset": "aa", "model": "bb"}, {}, {})
        return score.tokens_per_pass(context, recipe, device, lambda: asked.append(1) or 4096 * len(asked))

    assert tokens("cpu") == score.AUTO_TOKENS_PER_BATCH
    assert tokens(score__tokens_per_batch=77) == 77
    assert asked == []
    assert [tokens(), tokens()] == [4096, 4096]
    # Another length of rows needs another amount.
    assert [tokens(score__max_length=128), tokens(score__max_length=128), tokens()] == [8192, 8192, 4096]
