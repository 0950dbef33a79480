"""The run directory: whose it is, who holds it, and that what stands there is whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codetune.errors import BusyError, InputError, StaleError
from codetune.project.sections import Project
from codetune.store.run_directory import (
    Digests,
    Manifest,
    Run,
    combined,
    locked,
    look_at_run,
    manifest_path,
    naming,
    open_run,
    read_manifest,
    remove,
    replacing,
    waiting,
    write_lines,
    write_manifest,
    write_text,
)

SEAL = Manifest(
    "score", "00ff", 3, {"duplicate": 1}, {"dataset": "aa"}, {"score.max_length": 512}, {}, 1.5, {"note": ["é"]}
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


# --- whose directory it is


def test_a_run_lies_below_its_project_and_says_whose_it_is(tmp_path: Path) -> None:
    run = open_run(project(tmp_path, name="mine", seed=7))
    assert run.directory == tmp_path / "runs" / "mine"
    record = json.loads((run.directory / "project.json").read_text(encoding="utf-8"))
    assert (record["settings"]["name"], record["settings"]["seed"], record["root"]) == ("mine", 7, str(tmp_path))


def test_an_output_directory_is_relative_to_the_project_file(tmp_path: Path) -> None:
    assert look_at_run(project(tmp_path, output_dir="out")).directory == tmp_path / "out"
    assert look_at_run(project(tmp_path, output_dir="/elsewhere/out")).directory == Path("/elsewhere/out")


def test_looking_makes_nothing(tmp_path: Path) -> None:
    look_at_run(project(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_another_project_is_left_alone(tmp_path: Path) -> None:
    open_run(project(tmp_path, name="first", output_dir="out"))
    before = (tmp_path / "out" / "project.json").read_bytes()
    with pytest.raises(InputError, match=r"belongs to project 'first', this one is 'second'\..*rm -r"):
        open_run(project(tmp_path, name="second", output_dir="out"))
    assert (tmp_path / "out" / "project.json").read_bytes() == before


def test_a_directory_with_files_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / "thesis.tex", "years of work")
    with pytest.raises(InputError, match=r"holds thesis\.tex but no project\.json"):
        open_run(project(tmp_path, output_dir="out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_empty_directory_and_one_with_a_cut_off_temporary_file_are_taken(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / ".project.json.123.tmp", "{")
    assert open_run(project(tmp_path, output_dir="out")).directory.is_dir()


@pytest.mark.parametrize("output_dir", ["file", "file/below"])
def test_a_file_where_the_directory_should_be_is_told(output_dir: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="Set output_dir to"):
        open_run(project(tmp_path, output_dir=output_dir))


def test_who_only_looks_is_told_of_a_file_where_the_directory_should_be_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; expected a directory"):
        look_at_run(project(tmp_path, output_dir="file"))


def test_the_project_is_written_as_it_was_resolved(tmp_path: Path) -> None:
    wanted = project(tmp_path, seed=7).placed(tmp_path, {"seed": 7})
    document = json.loads((open_run(wanted).directory / "project.json").read_text(encoding="utf-8"))
    assert document == {"root": str(tmp_path), "overrides": {"seed": 7}, "settings": wanted.model_dump()}


def test_a_place_where_one_may_not_write_is_told() -> None:
    with as_nobody() as root, pytest.raises(InputError, match=r"cannot be made \(Permission denied\)\. Set output_dir"):
        open_run(project(root))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"{}", b'{"settings": 3}', b'{"name": "npm"}'])
def test_a_project_json_that_codetune_did_not_write_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "project.json").write_bytes(content)
    with pytest.raises(InputError, match=r"project\.json is not what codetune writes there\. Set output_dir"):
        open_run(project(tmp_path, output_dir="out"))
    assert (tmp_path / "out" / "project.json").read_bytes() == content


def test_no_two_artefacts_share_a_path(run: Run) -> None:
    paths = [
        *(run.scores, run.embeddings, run.embedding_ids, run.projection("digest"), run.selection, run.model, run.train),
        *(run.completions("b", "m"), run.solutions("b", "m"), run.evaluation("b", "m")),
    ]
    everything = [*paths, *map(run.parts, paths), *map(manifest_path, paths)]
    assert len(set(everything)) == len(everything)


# --- locks


def test_one_process_holds_an_output_and_a_second_names_it(run: Run) -> None:
    with held_elsewhere(run, "score", None) as holder, pytest.raises(BusyError, match=rf"process {holder.pid} on "):
        enter(run, "score", None)


def test_the_holder_is_named_alone_whoever_held_it_before(run: Run) -> None:
    enter(run, "score", None)
    with locked(run, "score", None), pytest.raises(BusyError) as told:
        enter(run, "score", None)
    assert str(told.value).count("process ") == 1


def test_a_killed_process_frees_what_it_held(run: Run) -> None:
    with held_elsewhere(run, "score", None) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        enter(run, "score", None)


def test_different_outputs_are_made_at_once(run: Run) -> None:
    with locked(run, "score", None), locked(run, "generate-b-m", None):
        enter(run, "embed", None)


def test_a_lock_is_free_again_after_an_error(run: Run) -> None:
    with contextlib.suppress(ZeroDivisionError), locked(run, "score", None):
        raise ZeroDivisionError
    enter(run, "score", None)


@pytest.mark.parametrize("shard", [(0, 2), None])
def test_a_shard_excludes_its_twin_and_unsharded_runs(shard: tuple[int, int] | None, run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)) as holder, pytest.raises(BusyError, match=rf"process {holder.pid} on "):
        enter(run, "score", shard)


@pytest.mark.parametrize("shard", [(1, 2), (0, 3)])
def test_other_shards_work_beside_it(shard: tuple[int, int], run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)):
        enter(run, "score", shard)


def test_an_unsharded_run_excludes_every_shard(run: Run) -> None:
    with held_elsewhere(run, "score", None) as holder, pytest.raises(BusyError, match=rf"process {holder.pid} on "):
        enter(run, "score", (0, 2))


def test_a_shard_that_still_works_is_named_after_another_has_ended(run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)) as holder:
        with locked(run, "score", (1, 2)):
            pass
        with pytest.raises(BusyError, match=rf"process {holder.pid} on "):
            enter(run, "score", None)


def test_a_twin_that_was_refused_is_not_named(run: Run) -> None:
    with held_elsewhere(run, "score", (0, 2)) as holder:
        for shard in ((0, 2), None):
            with pytest.raises(BusyError, match=rf"process {holder.pid} on "):
                enter(run, "score", shard)


def test_a_run_that_ended_before_the_shards_began_is_not_named(run: Run) -> None:
    enter(run, "score", None)
    with held_elsewhere(run, "score", (0, 2)) as holder, pytest.raises(BusyError, match=rf"process {holder.pid} on "):
        enter(run, "score", None)


def test_an_output_whose_name_holds_a_slash_is_locked_below_the_run(run: Run) -> None:
    with locked(run, "generate-a/b-m", None):
        assert [path.name for path in (run.directory / ".locks").iterdir()] == ["generate-a-b-m"]


def test_whoever_waits_goes_on_when_the_other_has_ended(run: Run) -> None:
    with held_elsewhere(run, "score-parts", None) as holder:
        program = (
            "from pathlib import Path; from codetune.store.run_directory import Run, waiting\n"
            "print('waits', flush=True)\n"
            f"with waiting(Run(Path({str(run.directory)!r})), 'score-parts'): print('holds')"
        )
        waiter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(0.2)
        holder.kill()
        assert waiter.communicate(timeout=10)[0] == "holds\n"
    with waiting(run, "score-parts"):
        pass


# --- whole or not at all


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "scores.jsonl"
    with replacing(target) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["scores.jsonl"]
    assert target.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_error_in_the_block_leaves_the_old_one(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    make(target, kind, "old")
    with contextlib.suppress(ZeroDivisionError), replacing(target) as temporary:
        make(temporary, kind, "new")
        raise ZeroDivisionError
    assert content(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("left_behind", ["file", "directory"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_killed_process_left_under_the_temporary_name_is_removed_first(
    left_behind: str, kind: str, tmp_path: Path
) -> None:
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
        "import sys; from pathlib import Path; from codetune.store.run_directory import write_text\n"
        f"for _ in range(60): write_text(Path({str(target)!r}), sys.argv[1] * 50_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            assert target.read_text(encoding="utf-8") in ("a" * 50_000, "b" * 50_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [target]


def test_lines_that_cannot_be_made_leave_the_old_file(tmp_path: Path) -> None:
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


# --- manifests


def test_a_seal_comes_back_as_it_was_written(tmp_path: Path) -> None:
    artefact = tmp_path / "scores.jsonl"
    artefact.touch()
    write_manifest(artefact, SEAL)
    assert read_manifest(artefact) == SEAL
    manifest_path(artefact).unlink()
    assert read_manifest(artefact) is None


def test_a_seal_without_its_artefact_is_none(tmp_path: Path) -> None:
    write_manifest(tmp_path / "scores.jsonl", SEAL)
    assert read_manifest(tmp_path / "scores.jsonl") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff", b'{"stage": "score", "unknown": 1}'])
def test_a_damaged_seal_is_told_with_the_command_that_removes_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").touch()
    manifest_path(tmp_path / "scores.jsonl").write_bytes(content)
    with pytest.raises(StaleError, match=r"scores\.jsonl\.manifest is damaged .*rm .*scores\.jsonl\.seal"):
        read_manifest(tmp_path / "scores.jsonl")


@pytest.mark.parametrize("field", ["stage", "digest", "rows", "refused", "inputs", "settings", "overrides", "facts"])
def test_a_seal_whose_field_is_of_another_kind_is_damaged(field: str, tmp_path: Path) -> None:
    artefact = tmp_path / "scores.jsonl"
    artefact.touch()
    write_manifest(artefact, SEAL)
    document = json.loads(manifest_path(artefact).read_text())
    manifest_path(artefact).write_text(json.dumps({**document, field: [1]}))
    with pytest.raises(StaleError, match="a field of another kind"):
        read_manifest(artefact)


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as why, naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert why.value.filename == str(tmp_path / "a")


def test_seals_of_other_contents_differ() -> None:
    assert replace(SEAL, rows=4) != SEAL


# --- digests


def test_a_changed_file_has_a_new_digest(run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    digests = Digests(run)
    assert digests.file(path) == hashlib.sha256(b"one").hexdigest()
    aged(path, "two")  # as long, and to the nanosecond as old
    assert Digests(run).file(path) == hashlib.sha256(b"two").hexdigest()
    assert digests.file(path) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(("text", "nanoseconds"), [("longer", 10**18), ("two", 10**18 + 1)])
def test_a_file_changed_in_its_place_is_known_by_its_size_or_its_time(text: str, nanoseconds: int, run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    digests = Digests(run)
    digests.file(path)
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(nanoseconds, nanoseconds))
    assert digests.file(path) == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_was_just_written_is_read_again_every_time(run: Run) -> None:
    path = run.directory / "data.jsonl"
    write_text(path, "one")
    digests = Digests(run)
    digests.file(path)
    status = path.stat()
    with path.open("r+") as file:  # the same inode, as in a write within one tick of the clock
        file.write("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.file(path) == hashlib.sha256(b"two").hexdigest()


def test_an_old_file_is_read_once(run: Run) -> None:
    path = aged(run.directory / "weights.safetensors", "one")
    first = Digests(run).file(path)
    memory = run.directory / ".cache" / "digests.json"
    memory.write_text(memory.read_text(encoding="utf-8").replace(first, "remembered"), encoding="utf-8")
    assert Digests(run).file(path) == "remembered"


def test_a_digest_that_cannot_be_remembered_is_given_all_the_same(run: Run) -> None:
    path = aged(run.directory / "data.jsonl", "one")
    (run.directory / ".cache").touch()  # where the directory of the memory would be
    assert Digests(run).file(path) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("memory", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_memory_of_digests_is_forgotten(memory: bytes, run: Run) -> None:
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


def test_what_does_not_belong_to_a_model_changes_nothing(run: Run) -> None:
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


def enter(run: Run, output: str, shard: tuple[int, int] | None) -> None:
    with locked(run, output, shard):
        pass


@contextlib.contextmanager
def held_elsewhere(run: Run, output: str, shard: tuple[int, int] | None) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until the block ends."""
    program = (
        "import time; from pathlib import Path; from codetune.store.run_directory import Run, locked\n"
        f"with locked(Run(Path({str(run.directory)!r})), {output!r}, {shard!r}):\n"
        "    print('holds', flush=True)\n"
        "    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "holds\n"
        yield holder
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()


def make(path: Path, kind: str, text: str) -> None:
    if kind == "directory":
        path.mkdir()
        path = path / "inside"
    path.write_text(text, encoding="utf-8")


def content(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text(encoding="utf-8")


def aged(path: Path, text: str) -> Path:
    """A file of a day that is long past; an existing one is replaced, so it has another inode."""
    write_text(path, text)
    os.utime(path, ns=(10**18, 10**18))
    return path
