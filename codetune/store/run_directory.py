"""The run directory: where each artefact lives, how it comes to exist, and whether it is still true.

An artefact exists when it is sealed: written under a temporary name, renamed, then a manifest beside it with counts,
reasons of refusal, digests of its inputs and the settings that made it. A lock dies with its process (flock).
Row-wise stages gather their rows in `block_log.py` first. Knows nothing of what the artefacts mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codetune import __version__
from codetune.errors import BusyError, InputError, StaleError
from codetune.project.sections import Project

# What belongs to a model besides its weights: any of these changes what it writes or how a prompt becomes tokens.
MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")

SHARED = fcntl.LOCK_SH


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an artefact; it stands beside it as `<artefact>.seal`."""

    stage: str
    digest: str
    rows: int
    refused: Mapping[str, int]
    inputs: Mapping[str, str]  # name of the input -> digest
    settings: Mapping[str, Any]  # dotted key -> value
    overrides: Mapping[str, Any]  # those of the settings that came by flag
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)  # diagnostics of the stage
    version: str = __version__


_MANIFEST_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("stage", "digest", "version"), str),
    **dict.fromkeys(("refused", "inputs", "settings", "overrides", "facts"), dict),
    "rows": int,
    "seconds": (int, float),
}


@dataclass(frozen=True, slots=True)
class Run:
    """The paths of one run. Benchmark artefacts are named by benchmark and model label."""

    directory: Path

    @property
    def scores(self) -> Path:
        return self.directory / "scores.jsonl"

    @property
    def embeddings(self) -> Path:
        return self.directory / "embeddings.npy"

    @property
    def embedding_ids(self) -> Path:
        return self.directory / "embeddings.ids"

    def projection(self, settings_digest: str) -> Path:
        """The offline embedder as it was fitted for these settings."""
        return self.directory / ".cache" / f"projection-{settings_digest[:16]}.npy"

    def tokens_per_batch(self, settings_digest: str) -> Path:
        """How many tokens the GPU that was asked first had room for, with these settings."""
        return self.directory / ".cache" / f"tokens-per-batch-{settings_digest[:16]}"

    def before(self, stage: str) -> Run:
        """Where a stage's artefact stays until the one that replaces it is sealed."""
        return Run(self.directory / ".before" / stage)

    @property
    def selection(self) -> Path:
        return self.directory / "selection.jsonl"

    @property
    def model(self) -> Path:
        return self.directory / "model"

    @property
    def train(self) -> Path:
        return self.directory / "train"

    @property
    def next_train(self) -> Path:
        """The training that is to replace a finished one."""
        return self.directory / "train.next"

    def completions(self, benchmark: str, label: str) -> Path:
        return self.directory / "completions" / benchmark / f"{label}.jsonl"

    def solutions(self, benchmark: str, label: str) -> Path:
        return self.directory / "solutions" / benchmark / f"{label}.jsonl"

    def evaluation(self, benchmark: str, label: str) -> Path:
        return self.directory / "evaluation" / benchmark / f"{label}.json"

    def parts(self, artefact: Path) -> Path:
        return artefact.with_name(f"{artefact.name}.parts")


def open_run(project: Project) -> Run:
    """The project's run directory, made when missing, with `project.json` written. Raises InputError where the
    directory belongs to another project or holds files of somebody else."""
    run = look_at_run(project)
    directory = run.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError, FileNotFoundError) as why:
        raise InputError(
            f"{directory}: cannot be made ({why.strerror}). Set output_dir to a place you may write"
        ) from None
    write_text(directory / "project.json", json.dumps(project_document(project), indent=2, ensure_ascii=False) + "\n")
    return run


def look_at_run(project: Project) -> Run:
    """The same without writing anything: for those who only look."""
    directory = project.run_dir
    file = next((place for place in (directory, *directory.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise InputError(f"{file} is a file; expected a directory. Set output_dir to another place")
    owner = _owner(directory / "project.json")
    if owner is not None and owner != project.name:
        raise InputError(
            f"{directory} belongs to project {owner!r}, this one is {project.name!r}. Set output_dir to another place, "
            f"or remove that run: rm -r {directory}"
        )
    foreign = _foreign_files(directory) if owner is None else []
    if foreign:
        raise InputError(
            f"{directory} holds {foreign[0]} but no project.json: not a run of codetune. Set output_dir to a new place"
        )
    return Run(directory)


def project_document(project: Project) -> dict[str, Any]:
    """The resolved project as JSON has it: all that another process needs to work on it."""
    return {"root": str(project.root), "overrides": dict(project.overrides), "settings": project.model_dump()}


def project_of(document: Mapping[str, Any]) -> Project:
    return Project.model_validate(document["settings"]).placed(Path(document["root"]), document["overrides"])


@contextlib.contextmanager
def waiting(run: Run, output: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds `output` for a moment, after waiting for whoever holds it now; those who only read (`SHARED`) together."""
    path = run.directory / ".locks" / output
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, kind)
        yield


@contextlib.contextmanager
def locked(run: Run, output: str, shard: tuple[int, int] | None) -> Iterator[None]:
    """Holds `output` for this process. One shard excludes its own twin and every unsharded run of the same output.

    Raises BusyError naming the run that holds it."""
    with contextlib.ExitStack() as held:
        if shard is None:
            _lock(held, run, output, fcntl.LOCK_EX)
        else:
            _lock(held, run, output, fcntl.LOCK_SH)
            _lock(held, run, f"{output}-{shard[0]}-of-{shard[1]}", fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` (file or directory) that takes its place when the block ends without an error.
    For whoever holds the lock of `target`: what a killed process left under the temporary name is removed first."""
    yield from _replacing(target, target.with_name(f".{target.name}.tmp"))


def write_text(path: Path, text: str) -> None:
    """Replaces a small file; safe where several processes write it at once (the last one stands), also on machines
    that share the directory, whose processes may have the same number."""
    own = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with contextlib.contextmanager(_replacing)(path, own) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _replacing(target: Path, temporary: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        with naming(target):
            yield temporary
        for path in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            if path.is_file():
                _flush(path)
        if temporary.is_dir():
            remove(target)
        temporary.replace(target)
        _flush(target.parent)
    finally:
        remove(temporary)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing, which know no file, are of this one."""
    try:
        yield
    except OSError as why:
        why.filename = why.filename or str(path)
        raise


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def manifest_path(artefact: Path) -> Path:
    return artefact.with_name(f"{artefact.name}.seal")


def write_manifest(artefact: Path, manifest: Manifest) -> None:
    write_text(manifest_path(artefact), json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")


def read_manifest(artefact: Path) -> Manifest | None:
    """The manifest, or None where there is none; one without its artefact is none."""
    try:
        document = json.loads(manifest_path(artefact).read_text(encoding="utf-8"))
        if any(not isinstance(document[name], kind) for name, kind in _MANIFEST_KINDS.items()):
            raise _damaged(artefact, "a field of another kind than a manifest has")
        return Manifest(**document) if artefact.exists() else None
    except FileNotFoundError:
        return None
    except ValueError as why:  # no text, or no JSON
        raise _damaged(artefact, str(why)) from None
    except (TypeError, LookupError):
        raise _damaged(artefact, "other fields than a manifest has") from None


def _damaged(artefact: Path, fault: str) -> StaleError:
    manifest = manifest_path(artefact)
    return StaleError(f"{manifest} is damaged ({fault}). Remove it, then make {artefact.name} again: rm {manifest}")


class Digests:
    """SHA-256 of files, remembered in the run directory by path, size, time and inode: weights are read once."""

    def __init__(self, run: Run) -> None:
        self._memory = run.directory / ".cache" / "digests.json"
        try:
            self._known: dict[str, list[Any]] = json.loads(self._memory.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # a damaged memory is none
            self._known = {}

    def file(self, path: Path) -> str:
        status = path.stat()
        # The time of its last change besides: whoever copies can set the other one.
        mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(str(path.resolve()))
        # A file touched within the last two seconds may change again within the clock's resolution: not remembered.
        if known and known[0] == mark:
            return str(known[1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - status.st_mtime > 2:
            self._known[str(path.resolve())] = [mark, digest]
            with contextlib.suppress(OSError):  # a full disk, or one that may only be read: it is read again next time
                write_text(self._memory, json.dumps(self._known))
        return digest

    def tree(self, path: Path) -> str:
        """Of a model directory: the names and contents of its weights, configuration and tokenizer."""
        # A sentence-transformers model has parts in directories of their own; in any other they are checkpoints.
        found = path.rglob("*") if (path / "modules.json").is_file() else path.iterdir()
        files = sorted(file for file in found if file.suffix in MODEL_FILES and file.is_file())
        return combined(f"{file.relative_to(path)} {self.file(file)}" for file in files)

    def artefact(self, path: Path) -> str:
        return self.tree(path) if path.is_dir() else self.file(path)


def combined(parts: Iterable[str]) -> str:
    """One digest of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _owner(record: Path) -> str | None:
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["settings"]["name"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{record} is not what codetune writes there. Set output_dir to another place, or, if this is a run of "
            f"codetune whose file is damaged, remove it: rm {record}"
        ) from None


def _foreign_files(directory: Path) -> list[str]:
    """What a run would not have left behind before its project.json; dot-files may be cut-off temporary ones."""
    return sorted(path.name for path in directory.iterdir() if path.name[0] != ".") if directory.is_dir() else []


def _lock(held: contextlib.ExitStack, run: Run, name: str, kind: int) -> None:
    path = run.directory / ".locks" / name.replace("/", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = held.enter_context(path.open("a+", encoding="utf-8"))
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"{run.directory}: {name} is being made by {_holder(path)}. Wait for it to end, or end it; then try again"
        ) from None
    # Only for the message above: what counts is the lock, which dies with its process.
    file.truncate(0)
    file.write(
        f"process {os.getpid()} on {os.uname().nodename}, since {time.strftime('%H:%M:%S')}: {_command_line()}\n"
    )
    file.flush()


def _holder(path: Path) -> str:
    """What the process wrote that holds this lock, or that of one of its shards, at this moment."""
    for candidate in [path, *sorted(path.parent.glob(f"{glob.escape(path.name)}-*-of-*"))]:
        with candidate.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another run"
    return "another run"


def _command_line() -> str:
    return " ".join(["codetune", *sys.argv[1:]])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
