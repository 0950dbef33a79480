"""The run directory: the paths of the artefacts, and to whom the directory belongs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codetune.errors import InputError
from codetune.project.sections import Project
from codetune.store.files import write_text
from codetune.store.manifest import manifest_path
from codetune.store.run_directory import Run, inspect_run, open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_run_is_created_below_its_project_and_names_its_project(tmp_path: Path) -> None:
    run = open_run(project(tmp_path, name="mine", seed=7))
    assert run.directory == tmp_path / "runs" / "mine"
    record = json.loads((run.directory / "project.json").read_text(encoding="utf-8"))
    assert (record["settings"]["name"], record["settings"]["seed"], record["root"]) == ("mine", 7, str(tmp_path))


def test_an_output_directory_is_relative_to_the_project_file(tmp_path: Path) -> None:
    assert inspect_run(project(tmp_path, output_dir="out")).directory == tmp_path / "out"
    assert inspect_run(project(tmp_path, output_dir="/elsewhere/out")).directory == Path("/elsewhere/out")


def test_inspecting_a_run_writes_nothing(tmp_path: Path) -> None:
    inspect_run(project(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_another_project_is_refused_and_unchanged(tmp_path: Path) -> None:
    open_run(project(tmp_path, name="first", output_dir="out"))
    before = (tmp_path / "out" / "project.json").read_bytes()
    with pytest.raises(InputError, match=r"belongs to project 'first', this one is 'second'\..*or name: first"):
        open_run(project(tmp_path, name="second", output_dir="out"))
    assert (tmp_path / "out" / "project.json").read_bytes() == before


@pytest.mark.parametrize("make_copy", [shutil.copytree, shutil.move])
def test_a_run_directory_that_was_copied_or_renamed_belongs_to_the_name_that_it_has_now(
    make_copy: Callable[[Path, Path], object], tmp_path: Path
) -> None:
    first = open_run(project(tmp_path, name="first"))
    make_copy(first.directory, tmp_path / "runs" / "second")
    opened = open_run(project(tmp_path, name="second"))
    assert json.loads((opened.directory / "project.json").read_text(encoding="utf-8"))["settings"]["name"] == "second"


def test_the_run_of_another_project_is_recognised_after_the_whole_tree_was_moved(tmp_path: Path) -> None:
    open_run(project(tmp_path / "here", name="first"))
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(InputError, match="belongs to project 'first'"):
        open_run(project(tmp_path / "there", name="second", output_dir="runs/first"))


def test_a_directory_with_foreign_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / "thesis.tex", "years of work")
    with pytest.raises(InputError, match=r"holds thesis\.tex but no project\.json"):
        open_run(project(tmp_path, output_dir="out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_project_in_a_directory_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"bad\xff")
    root.mkdir()
    with pytest.raises(InputError, match=r"bad\\udcff' is not UTF-8.*Rename the directory"):
        open_run(project(root))
    assert not list(root.iterdir())


def test_a_directory_with_a_leftover_temporary_file_is_accepted(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / ".project.json.123.tmp", "{")
    assert open_run(project(tmp_path, output_dir="out")).directory.is_dir()


@pytest.mark.parametrize(
    ("output_dir", "found"),
    [
        ("file", "file is a file"),
        ("file/below", "file is a file"),
        ("dangling", "dangling is a link to nothing"),
        ("dangling/below", "dangling is a link to nothing"),
        ("circle", "circle is a link to nothing"),
        ("a" * 300, "File name too long"),
        ("run", "project.json: Is a directory"),
    ],
)
def test_what_can_be_no_run_directory_is_refused(output_dir: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "run" / "project.json").mkdir(parents=True)
    with pytest.raises(InputError, match=f"{found}. Expected: a directory .* Set output_dir to another directory"):
        open_run(project(tmp_path, output_dir=output_dir))


@pytest.mark.parametrize("output_dir", ["file", "file/below"])
def test_inspecting_refuses_a_file_instead_of_the_directory(output_dir: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file\. Expected: a directory"):
        inspect_run(project(tmp_path, output_dir=output_dir))


def test_project_json_holds_the_resolved_project(tmp_path: Path) -> None:
    wanted = project(tmp_path, seed=7).placed(tmp_path, {"seed": 7})
    document = json.loads((open_run(wanted).directory / "project.json").read_text(encoding="utf-8"))
    assert document == {"root": str(tmp_path), "overrides": {"seed": 7}, "settings": wanted.model_dump()}


def test_a_directory_without_write_permission_is_refused() -> None:
    with as_nobody() as root, pytest.raises(InputError, match=r"Permission denied\. Expected: .* Set output_dir"):
        open_run(project(root))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"{}", b'{"settings": 3}', b'{"name": "npm"}'])
def test_a_project_json_that_codetune_did_not_write_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "project.json").write_bytes(content)
    with pytest.raises(InputError, match=r"project\.json is not what codetune writes there\. Set output_dir"):
        open_run(project(tmp_path, output_dir="out"))
    assert (tmp_path / "out" / "project.json").read_bytes() == content


def test_no_two_artefacts_share_a_path(run: Run) -> None:
    paths = [run.scores, run.embeddings, run.embedding_ids, run.projection("digest"), run.selection, run.model]
    paths += [run.train, run.completions("b", "m"), run.solutions("b", "m"), run.evaluation("b", "m")]
    everything = [*paths, *map(run.parts, paths), *map(manifest_path, paths)]
    assert len(set(everything)) == len(everything)


def project(root: Path, **settings: object) -> Project:
    return Project.model_validate(settings).placed(root, {})


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """A directory that this user may not write to; root, who may write anywhere, becomes nobody meanwhile."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o555)
        user = os.geteuid()
        try:
            os.seteuid(user or 65534)
        except OSError:
            pytest.skip("root cannot become another user here")
        try:
            yield Path(directory)
        finally:
            os.seteuid(user)
