"""SHA-256 of files and of model directories, cached in the run directory so that weights are read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from codetune.store.files import write_text
from codetune.store.run_directory import Run, files_of

# Files of a model directory that change what the model writes or how a prompt becomes tokens.
MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")
CLOCK_RESOLUTION_SECONDS = 2  # of the coarsest file systems: a younger file may change again under the same time

FileState = list[int]  # size in bytes, time of the last write, time of the last change, inode (times in nanoseconds)


class Digests:
    """Digests of files. The cache (`<run>/.cache/digests.json`) is keyed by path and valid for one state of the file:
    its size, times and inode. Without a readable or writable cache, files are read again."""

    def __init__(self, run: Run) -> None:
        self._cache_path = run.directory / ".cache" / "digests.json"
        try:
            self._cache: dict[str, tuple[FileState, str]] = json.loads(self._cache_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            self._cache = {}

    def file(self, path: Path) -> str:
        """SHA-256 of the content of a file, as 64 hex digits."""
        status, key = path.stat(), str(path.resolve())
        # The time of the last change (ctime) as well: a copying tool can set the time of the last write (mtime).
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        cached = self._cache.get(key)
        if cached and cached[0] == state:
            return cached[1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - status.st_mtime > CLOCK_RESOLUTION_SECONDS:
            self._cache[key] = (state, digest)
            with contextlib.suppress(OSError):
                write_text(self._cache_path, json.dumps(self._cache))
        return digest

    def tree(self, path: Path) -> str:
        """Digest of a model directory: the names and contents of its weights, configuration and tokenizer."""
        # A sentence-transformers model has parts in subdirectories; in other models subdirectories are checkpoints.
        found = path.rglob("*") if (path / "modules.json").is_file() else path.iterdir()
        files = sorted(file for file in found if file.suffix in MODEL_FILES and file.is_file())
        return combined(f"{file.relative_to(path)} {self.file(file)}" for file in files)

    def artefact(self, path: Path) -> str:
        """Digest of an artefact as it lies there now: of a file, of several that belong together, or of a model."""
        if path.is_dir():
            return self.tree(path)
        others = [file for file in files_of(path)[1:] if file.exists()]
        return combined(self.file(file) for file in (path, *others)) if others else self.file(path)


def combined(parts: Iterable[str]) -> str:
    """SHA-256 of several texts in their order, as 64 hex digits."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
