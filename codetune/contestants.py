"""A model as a benchmark sees it: what `tuned`, `base`, a path or a hub id stands for, the digest that its results are
kept by, and how it is prompted. Loads no weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codetune.pipeline import TRAINED
from codetune.stages import Desk, require
from codetune.store import combined

Kind = Literal["completion", "chat"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model as a benchmark sees it."""

    name: str  # as the user says it: tuned, base, a path or a hub id
    label: str
    directory: Path
    digest: str
    kind: Kind | None  # how it is prompted; None where nothing tells, and only `generate` needs to know


def contestant(desk: Desk, name: str) -> Contestant:
    """The model that `tuned`, `base`, a path or a hub id stands for, and how it is prompted."""
    project = desk.project
    if name == "tuned":
        require(desk, "train")
        directory = desk.run.model
    else:
        from codetune.model.load import find_model

        directory = find_model(project.locate(project.model.path if name == "base" else name))
    digest = model_digest(desk, directory)
    label = name if name in ("tuned", "base") else f"{directory.resolve().name}-{digest[:8]}"
    return Contestant(name, label, directory, digest, prompt_kind(desk, name, directory))


def model_digest(desk: Desk, directory: Path) -> str:
    """Of all that decides what a model writes; of adapters together with the model below them."""
    own = desk.digests.tree(directory)
    adapter = directory / "adapter_config.json"
    if not adapter.is_file():
        return own
    base = Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    return combined([own, model_digest(desk, base) if base.is_dir() else str(base)])


def prompt_kind(desk: Desk, name: str, directory: Path) -> Kind | None:
    """Chat for what codetune trained, completion for `base`; of any other model the user must say it."""
    said = desk.project.generate.prompt
    if said != "auto":
        return said
    if name == "base":
        return "completion"
    return "chat" if (directory / TRAINED).exists() else None


def end_of_turn(model: Contestant) -> tuple[str, ...]:
    """What closes an answer beside EOS: of a model that codetune trained its family's own text."""
    from codetune.data.chat import stop_texts

    mark = model.directory / TRAINED
    if model.kind != "chat" or not mark.exists():
        return ()
    return stop_texts(json.loads(mark.read_text(encoding="utf-8"))["model.chat_format"])
