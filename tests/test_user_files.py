"""Only plain files are opened, what they unpack to has a limit, and a glob ends."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import pytest

from codetune import user_files
from codetune.errors import DataError, ProjectError
from codetune.user_files import matching_paths, open_limited, read_lines, require_plain_file


@pytest.mark.parametrize("name", ["a", "link", "none", "a/none"])
def test_a_file_a_link_to_one_and_a_path_without_one_are_no_fault(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    require_plain_file(tmp_path / name)


@pytest.fixture
def odd_files(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe", "pipe is a named pipe. Expected: a plain file. Write what it gives to a file"),
        ("link", "link is a named pipe"),
        ("socket", "socket is a socket"),
        ("/dev/zero", "zero is a device"),
        (".", "is a directory. Expected: a plain file. Name a file"),
        ("circle", "circle cannot be read: Too many levels of symbolic links"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
    ids=["pipe", "link to a pipe", "socket", "device", "directory", "circle of links", "long name"],
)
def test_what_is_no_plain_file_is_named(odd_files: Path, name: str, message: str) -> None:
    with pytest.raises(ProjectError, match=message):
        require_plain_file(odd_files / name, ProjectError)


def test_a_name_with_a_null_character_can_be_no_path() -> None:
    with pytest.raises(DataError, match=r"cannot be a path \(embedded null byte"):
        require_plain_file(Path("a\0b"))


def test_a_file_unpacks_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x\n" * 100_000))
    monkeypatch.setattr(user_files, "UNPACKED_BYTES", 200_000)
    with open_limited(tmp_path / "a.gz", "a.gz", is_gzip=True) as stream:
        assert sum(1 for _ in read_lines(stream, "a.gz")) == 100_000
    monkeypatch.setattr(user_files, "UNPACKED_BYTES", 199_999)
    with (
        open_limited(tmp_path / "a.gz", "a.gz", is_gzip=True) as stream,
        pytest.raises(DataError, match=r"a\.gz has \d+ bytes and unpacks to more than .* 100 times its size"),
    ):
        list(read_lines(stream, "a.gz"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.json", "a.json d/b.json d/e/c.json"),
        ("d/**", "d/b.json d/e/c.json"),
        ("*/**/*.json", "d/b.json d/e/c.json link/b.json link/e/c.json"),
        ("**/e/**/c.json", "d/e/c.json"),
        ("*.json", "a.json"),
        ("none/**", ""),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_glob_finds_files_in_any_depth_and_follows_no_link_below_the_stars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: str, absolute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "d/b.json", "d/e/c.json", "d/.hidden/h.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("d/e/up").symlink_to(tmp_path)
    Path("link").symlink_to("d")
    base = tmp_path if absolute else Path()
    found = {path.relative_to(base).as_posix() for path in matching_paths(str(base / pattern)) if path.is_file()}
    assert found == set(expected.split())
