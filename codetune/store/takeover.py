"""Artefacts that the other runs in the same directory have sealed. One that is wanted is copied into this run, so that
runs in which only later stages differ share the work of the earlier ones.

Wanted is what the caller recognises by its manifest. Not taken is what is unsealed, of another version, or not the
bytes that were sealed. The other run is only read; afterwards neither run depends on the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from codetune import __version__
from codetune.errors import StaleError
from codetune.store.digests import Digests
from codetune.store.files import remove, replacing
from codetune.store.manifest import Manifest, read_manifest
from codetune.store.run_directory import Run, files_of

TAKEN_FROM = "taken_from"  # fact of a manifest: the run directory that the artefact was copied from


def take_over(run: Run, digests: Digests, artefact: Path, is_wanted: Callable[[Manifest], bool]) -> Manifest | None:
    """Copies `artefact` from the first run that has a wanted one under the same name; returns its manifest, for the
    caller to seal the copy with, or None where no run has one. The caller holds the lock of `artefact`."""
    for directory in _directories_beside(run):
        source = directory / artefact.relative_to(run.directory)
        manifest = _manifest_of(source)
        if manifest is not None and is_wanted(manifest) and _copy(source, artefact, manifest.digest, digests):
            return replace(manifest, facts={**manifest.facts, TAKEN_FROM: str(directory)})
    return None


def _directories_beside(run: Run) -> Iterator[Path]:
    """The other run directories with the same parent, by name, then those beside the parent: a run of a sweep may take
    what the project's own run has made."""
    parent = run.directory.parent
    found = [sorted(place.glob(f"*/{run.project.name}")) for place in (parent, parent.parent)]
    directories = (record.parent for records in found for record in records)
    return (directory for directory in directories if not directory.samefile(run.directory))


def _manifest_of(artefact: Path) -> Manifest | None:
    try:
        manifest = read_manifest(artefact)
    except (StaleError, PermissionError):  # damaged, of an older version, or another user's
        return None
    return manifest if manifest is not None and manifest.version == __version__ else None


def _copy(source: Path, artefact: Path, digest: str, digests: Digests) -> bool:
    """Whether the bytes of `source` are those of `digest`; if so, they are copied to `artefact`."""
    copies = artefact.with_name(f".{artefact.name}.taken")
    remove(copies)
    copies.mkdir(parents=True)
    try:
        for file in files_of(source):
            shutil.copyfile(file, copies / file.name)
        if digests.artefact(copies / artefact.name) != digest:
            return False
        for file in reversed(files_of(artefact)):
            with replacing(file) as temporary:
                (copies / file.name).rename(temporary)
    except (FileNotFoundError, PermissionError):  # replaced or removed meanwhile, or another user's
        return False
    finally:
        remove(copies)
    return True
