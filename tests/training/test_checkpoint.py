"""A checkpoint counts when it is sealed, whole, and of the same training."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.errors import CodetuneError, StaleError
from codetune.training.checkpoint import (
    STEP_SAMPLES,
    STRATEGY,
    explain_full_disk,
    last_checkpoint,
    prune_checkpoints,
    remove_incomplete_checkpoints,
    seal_checkpoint,
)
from tests.model.builders import byte_tokenizer

FACTS = {"seed": 1, "rows": 20}


def checkpoint(directory: Path, step: int, *, sealed: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"12345")
    if sealed:
        seal_checkpoint(path, step, FACTS, {"loss": step})
    return path


def test_the_newest_sealed_one_is_found_and_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    torn = checkpoint(tmp_path, 11, sealed=False)
    remove_incomplete_checkpoints(tmp_path)
    found = last_checkpoint(tmp_path, FACTS)
    assert found is not None
    assert (found.step, found.path, found.metrics) == (10, tmp_path / "checkpoint-10", {"loss": 10})
    assert not torn.exists()


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path, FACTS) is None


def test_every_difference_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    with pytest.raises(
        StaleError, match=r"checkpoint-3 was made .*: seed 1 then, 2 now; rows 20 then, 19 now\. .*add --replace"
    ):
        last_checkpoint(tmp_path, {"seed": 2, "rows": 19})


def test_a_difference_that_comes_from_the_launch_is_told_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-3"
    path.mkdir()
    seal_checkpoint(path, 3, {STEP_SAMPLES: 8, STRATEGY: "zero2 in 2 processes"}, {})
    with pytest.raises(StaleError, match=r"samples of a step 8 then, 4 now.* train.global_batch_size .*set it to 8\."):
        last_checkpoint(tmp_path, {STEP_SAMPLES: 4, STRATEGY: "zero2 in 2 processes"})
    with pytest.raises(StaleError, match=r"'zero2 in 2 processes' then, 'zero2 in 1 processes' now.*the same again\."):
        last_checkpoint(tmp_path, {STEP_SAMPLES: 8, STRATEGY: "zero2 in 1 processes"})


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_file_is_an_error_that_says_which(tmp_path: Path, damage: str) -> None:
    file = checkpoint(tmp_path, 3) / "optimizer.pt"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"123")
    with pytest.raises(StaleError, match=r"optimizer.pt is missing or has another size .*Expected: 5 bytes"):
        last_checkpoint(tmp_path, FACTS)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (1, 10, 2, 9):
        checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, keep)
    assert {int(path.name.removeprefix("checkpoint-")) for path in tmp_path.iterdir()} == set([10, 9, 2, 1][:keep])


def test_a_disk_that_is_full_for_the_tokenizer_is_an_error_that_says_where_the_training_goes_on(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    tokenizer = byte_tokenizer(bos=True).backend_tokenizer
    full = Path("/dev/full")
    with (
        pytest.raises(CodetuneError, match=r"/dev/full cannot be written \(No space .*continues from .* step 3\)"),
        explain_full_disk(full, tmp_path, "the tokenizer"),
    ):
        tokenizer.save(str(full))


def test_another_exception_than_that_of_a_full_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"), explain_full_disk(tmp_path, tmp_path, "weights"):
        raise ValueError("shape")
