"""Runs a row stage over and over, and ends it by every kind of accident at a random moment: `python -m tests.killing`.

Everything is imported once; each run is a fork, so that dozens of accidents take seconds. A round ends when a run comes
to its end undisturbed; then its artefact is told by its digest, and the next round begins anew."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from codetune.launch.environment import prepare_process

prepare_process()

import codetune.model.likelihood
import codetune.selection.embed
from codetune.data.tokens import Span
from codetune.errors import CodetuneError
from codetune.launch.environment import Shard
from tests import pipeline
from tests.small_world import context_of

SHARDS: Sequence[Shard | None] = (None, None, (0, 2), (1, 2), (0, 3), (2, 3))
DONE, FAILED, PARTIAL, KILLED = 0, 1, 3, -signal.SIGKILL  # how a run ends
ACCIDENTS = ("kill", "kill", "kill", "kill", "full disk", "power")


class HastyScorer:
    """Likelihoods from the tokens alone, after a moment in which one can be killed."""

    window = 4096

    def __init__(self, *_: object) -> None: ...

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        time.sleep(0.002)
        return [1 + sum(span.tokens) % 997 / 997 + (span.start == 1) for span in spans]


def main(project: Path, stage: str, accidents: int, seed: int) -> None:
    codetune.model.likelihood.CausalScorer = HastyScorer  # type: ignore[assignment,misc]
    dice, happened = random.Random(seed), Counter[str]()
    began = time.monotonic()
    assert _end_of(_begin(project, stage, "calm", None, None)) == DONE
    usual, digests = time.monotonic() - began, [_digest(project, "calm", stage)]
    while happened.total() < accidents:
        name, status = f"round-{len(digests)}", PARTIAL
        while status != DONE:
            accident, shard, moment = dice.choice(ACCIDENTS), dice.choice(SHARDS), dice.random() * usual
            pid = _begin(project, stage, name, shard, int(moment * 40_000) if accident == "full disk" else None)
            if accident != "full disk":
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)
            status = _end_of(pid)
            happened[accident] += status in (FAILED, KILLED)
            if accident == "power":
                _lose_the_end(_parts(project, name, stage), dice)
        digests.append(_digest(project, name, stage))
    print(json.dumps({"accidents": happened, "digests": digests}))


def _begin(project: Path, stage: str, name: str, shard: Shard | None, longest_file: int | None) -> int:
    """The process of a run that has begun; a limit on the length of files stands for a full disk."""
    if (pid := os.fork()) != 0:
        return pid
    status = 99  # of what nobody foresaw
    try:
        if longest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, longest_file))
        run_stage = {"score": pipeline.score, "embed": pipeline.embed}[stage]
        context = context_of(project, output_dir=f"{name}/run", score__tokens_per_batch=96, embed__batch_size=3)
        status = DONE if run_stage(context, shard).state == "done" else PARTIAL
    except CodetuneError as error:
        status = error.exit_status
    except OSError as why:
        status = FAILED if why.errno == errno.EFBIG else status
    finally:
        os._exit(status)


def _end_of(pid: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (DONE, FAILED, PARTIAL, KILLED):
        raise SystemExit(f"a run ended with {status}")
    return status


def _lose_the_end(parts: Path, dice: random.Random) -> None:
    """What a power cut does to the last bytes of a file."""
    for log in parts.glob("*.log"):
        size = log.stat().st_size
        os.truncate(log, max(0, size - dice.randrange(40)))
        if dice.random() < 0.3:
            with log.open("ab") as file:
                file.write(bytes(dice.randrange(60)))


def _artefact(project: Path, name: str, stage: str) -> Path:
    return project.parent / name / "run" / {"score": "scores.jsonl", "embed": "embeddings.npy"}[stage]


def _parts(project: Path, name: str, stage: str) -> Path:
    artefact = _artefact(project, name, stage)
    return artefact.with_name(f"{artefact.name}.parts")


def _digest(project: Path, name: str, stage: str) -> str:
    return hashlib.sha256(_artefact(project, name, stage).read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
