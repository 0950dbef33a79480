"""Manifests: one JSON file beside each artefact (`<artefact>.seal`) that says what made it, from what, with which
settings, and what it holds. An artefact counts as finished ("sealed") when its manifest exists; it is written last.

Does not decide whether an artefact is still up to date: `stages.status` compares manifests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codetune import __version__
from codetune.errors import StaleError
from codetune.store.files import write_text
from codetune.text import day


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest file."""

    stage: str
    digest: str  # of the artefact
    rows: int
    refused: Mapping[str, int]  # reason -> rows
    inputs: Mapping[str, str]  # name of the input -> digest
    settings: Mapping[str, object]  # dotted key -> value
    overrides: Mapping[str, object]  # the settings that came by flag
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)  # diagnostics of the stage
    names: Mapping[str, str] = field(default_factory=dict)  # dotted key -> what the project called an input
    made: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    version: str = __version__

    @property
    def day(self) -> str:
        """The day on which the artefact was made, for messages.

        >>> Manifest("score", "", 0, {}, {}, {}, {}, 0.0, made="2026-11-21 09:30:00").day
        '21 November 2026'
        """
        return day(time.strptime(self.made, "%Y-%m-%d %H:%M:%S"))


_FIELD_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("stage", "digest", "version", "made"), str),
    **dict.fromkeys(("refused", "inputs", "settings", "overrides", "facts", "names"), dict),
    "rows": int,
    "seconds": (int, float),
}


def manifest_path(artefact: Path) -> Path:
    return artefact.with_name(f"{artefact.name}.seal")


def set_aside_command(artefact: Path) -> str:
    """A shell command after which the artefact counts as not made; it deletes nothing."""
    return f"mv {manifest_path(artefact)} {manifest_path(artefact)}.old"


def write_manifest(artefact: Path, manifest: Manifest) -> None:
    """Seals `artefact`: replaces its manifest."""
    write_text(manifest_path(artefact), json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")


def read_manifest(artefact: Path) -> Manifest | None:
    """The manifest of `artefact`; None where the manifest or the artefact does not exist. Raises StaleError where the
    manifest is damaged, or was written by a version whose run directories this one cannot read."""
    if not artefact.exists():
        return None
    try:
        document = json.loads(manifest_path(artefact).read_text(encoding="utf-8"))
        if isinstance(document, dict) and "version" in document and "made" not in document:
            version = document["version"]
            raise StaleError(
                f"{artefact} was made by codetune {version}. Version {__version__} cannot read its "
                f"records. Use codetune {version}, or set output_dir to a new directory. To make it again here: "
                f"{set_aside_command(artefact)}"
            )
        if any(not isinstance(document[name], kind) for name, kind in _FIELD_TYPES.items()):
            raise _damaged(artefact, "a field has the wrong type")
        return Manifest(**document)
    except FileNotFoundError:
        return None
    except ValueError as why:  # not UTF-8, or not JSON
        raise _damaged(artefact, str(why)) from None
    except (TypeError, LookupError):
        raise _damaged(artefact, "it has the wrong fields") from None


def _damaged(artefact: Path, fault: str) -> StaleError:
    return StaleError(
        f"{manifest_path(artefact)} is damaged ({fault}). Move it away, then make {artefact.name} again: "
        f"{set_aside_command(artefact)}"
    )
