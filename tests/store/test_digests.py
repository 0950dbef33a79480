"""Digests: a changed file is read again, an unchanged one is not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from codetune.store.digests import Digests, combined
from codetune.store.files import write_text
from codetune.store.run_directory import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_changed_file_has_a_new_digest(run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    digests = Digests(run)
    assert digests.file(path) == hashlib.sha256(b"one").hexdigest()
    aged(path, "two")  # as long, and to the nanosecond as old
    assert Digests(run).file(path) == hashlib.sha256(b"two").hexdigest()
    assert digests.file(path) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(("text", "nanoseconds"), [("longer", 10**18), ("two", 10**18 + 1)])
def test_an_overwritten_file_is_recognised_by_its_size_or_its_time(text: str, nanoseconds: int, run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    digests = Digests(run)
    digests.file(path)
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(nanoseconds, nanoseconds))
    assert digests.file(path) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_of_a_file_that_was_just_written_is_not_cached(run: Run) -> None:
    path = run.directory / "data.jsonl"
    write_text(path, "one")
    digests = Digests(run)
    digests.file(path)
    status = path.stat()
    with path.open("r+") as file:  # the same inode, as in a write within one tick of the clock
        file.write("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.file(path) == hashlib.sha256(b"two").hexdigest()


def test_the_digest_of_an_old_file_is_cached(run: Run) -> None:
    path = aged(run.directory / "weights.safetensors", "one")
    first = Digests(run).file(path)
    memory = run.directory / ".cache" / "digests.json"
    memory.write_text(memory.read_text(encoding="utf-8").replace(first, "remembered"), encoding="utf-8")
    assert Digests(run).file(path) == "remembered"


def test_a_cache_that_cannot_be_written_is_no_error(run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    (run.directory / ".cache").touch()  # where the directory of the memory would be
    assert Digests(run).file(path) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("memory", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_cache_of_digests_is_ignored(memory: bytes, run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    (run.directory / ".cache").mkdir()
    (run.directory / ".cache" / "digests.json").write_bytes(memory)
    assert Digests(run).file(path) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "merges.txt", "chat.jinja"])
def test_any_file_that_belongs_to_a_model_changes_its_digest(name: str, run: Run) -> None:
    model = run.directory / "model"
    write_text(model / "config.json", "{}")
    write_text(model / "model.safetensors", "weights")
    before = Digests(run).tree(model)
    write_text(model / name, "other")
    assert Digests(run).artefact(model) != before


def test_a_file_that_does_not_belong_to_a_model_leaves_its_digest(run: Run) -> None:
    model = run.directory / "model"
    write_text(model / "config.json", "{}")
    before = Digests(run).tree(model)
    write_text(model / "README.md", "words")
    write_text(model / "checkpoint-3" / "config.json", "{}")
    assert Digests(run).tree(model) == before


def test_a_renamed_file_changes_the_digest_of_a_model(run: Run) -> None:
    model = run.directory / "model"
    write_text(model / "a.json", "{}")
    before = Digests(run).tree(model)
    (model / "a.json").rename(model / "b.json")
    assert Digests(run).tree(model) != before


def test_texts_are_combined_in_their_order() -> None:
    assert combined(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest() != combined(["b", "a"])


def aged(path: Path, text: str) -> Path:
    """A file of a day that is long past; an existing one is replaced, so it has another inode."""
    write_text(path, text)
    os.utime(path, ns=(10**18, 10**18))
    return path
