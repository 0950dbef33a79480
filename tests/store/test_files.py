"""Writes of files: whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from codetune.store.files import naming, remove, replacing, write_lines


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "scores.jsonl"
    with replacing(target) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["scores.jsonl"]
    assert target.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_error_in_the_block_leaves_the_old_content(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    make(target, kind, "old")
    with contextlib.suppress(ZeroDivisionError), replacing(target) as temporary:
        make(temporary, kind, "new")
        raise ZeroDivisionError
    assert content(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("left_behind", ["file", "directory"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_leftover_of_a_killed_process_is_removed_first(left_behind: str, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with replacing(target) as temporary:
        make(temporary, kind, "old")
    make(temporary, left_behind, "half")
    with replacing(target) as again:
        assert again == temporary
        assert not again.exists()
        make(again, kind, "new")
    assert content(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_replaces_a_directory_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, "directory", "old")
    (target / "left.over").touch()
    with replacing(target) as temporary:
        make(temporary, "directory", "new")
    assert [path.name for path in target.iterdir()] == ["inside"]


def test_a_reader_never_sees_a_part_of_what_several_processes_write(tmp_path: Path) -> None:
    target = tmp_path / "project.json"
    program = (
        "import sys; from pathlib import Path; from codetune.store.files import write_text\n"
        f"for _ in range(60): write_text(Path({str(target)!r}), sys.argv[1] * 50_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            assert target.read_text(encoding="utf-8") in ("a" * 50_000, "b" * 50_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_while_lines_are_made_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    write_lines(target, ["é", "b"])
    with pytest.raises(ZeroDivisionError):
        write_lines(target, (str(1 // number) for number in (1, 0)))
    assert target.read_bytes() == "é\nb\n".encode()


def test_removing_a_link_to_a_directory_leaves_the_directory(tmp_path: Path) -> None:
    make(tmp_path / "precious", "directory", "kept")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    remove(tmp_path / "link")
    remove(tmp_path / "never was")
    assert content(tmp_path / "precious") == "kept"


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as why, naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert why.value.filename == str(tmp_path / "a")


def make(path: Path, kind: str, text: str) -> None:
    if kind == "directory":
        path.mkdir()
        path = path / "inside"
    path.write_text(text, encoding="utf-8")


def content(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text(encoding="utf-8")


def test_a_file_that_a_library_keeps_to_its_owner_gets_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "model") as directory:
        directory.mkdir()
        (directory / "weights").touch(0o600)
        (directory / "program").touch(0o700)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("model/weights", "usual", "model/program")]
    assert modes[0] == modes[1] != 0o600
    assert modes[2] == 0o700
