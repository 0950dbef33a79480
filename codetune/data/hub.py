"""A repository on the Hugging Face hub -> the directory of its snapshot in the local cache.

What is in the cache is taken from there without asking anybody. Otherwise the hub is asked once whether the repository
exists, within seconds even where the name server is silent, before anything is downloaded. Opens no file itself."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import huggingface_hub.errors
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from codetune.errors import CodetuneError, DataError, ModelError
from codetune.text import first_line

ANSWER_SECONDS = 4.0  # the whole refusal is promised within five
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
OWN_MISTAKE = {"model": ModelError, "dataset": DataError}

# httpx up to huggingface_hub 1, httpx2 from 2 on: its own errors know which.
TransportError: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]


def hub_snapshot(name: str, kind: Literal["model", "dataset"], patterns: Sequence[str]) -> Path:
    """The newest snapshot of the files that match `patterns`; its directory is named by the commit."""
    allowed = list(patterns)
    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=allowed, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    _require_known(name, kind)
    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=allowed))
    except (OSError, TransportError) as why:
        raise CodetuneError(
            f"The download of the {kind} {name} from the hub broke off ({type(why).__name__}: {first_line(why)}). "
            "What has arrived is kept: run the same command again."
        ) from why


def is_cached(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Whether a snapshot lies in the local cache; asks nobody."""
    try:
        snapshot_download(name, repo_type=kind, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a hub id: one word, or two with a slash between.

    >>> is_hub_id("deepseek-ai/deepseek-coder-6.7b-base"), is_hub_id("./base"), is_hub_id("a/b/c")
    (True, False, False)
    """
    return HUB_ID.fullmatch(name) is not None


def _require_known(name: str, kind: Literal["model", "dataset"]) -> None:
    failures: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=ANSWER_SECONDS)
            failures.put(None)
        except (OSError, TransportError) as why:
            failures.put(why)

    # A thread, because no timeout reaches into the resolver; a daemon, because a hung one must not hold up the exit.
    threading.Thread(target=ask, daemon=True).start()
    try:
        failure = failures.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        failure = TimeoutError(f"no answer in {ANSWER_SECONDS:g} s")
    if failure is None:
        return
    missing = f"{name} is no path here and not in the hub's cache"
    if isinstance(failure, RepositoryNotFoundError):
        raise OWN_MISTAKE[kind](
            f"{missing}, and the hub has no {kind} of that name that you may read. Expected: a local path or the id of "
            f"a {kind} on the hub. Mend the name, or log in where it is private: hf auth login"
        )
    raise OWN_MISTAKE[kind](
        f"{missing}, and the hub cannot be asked ({type(failure).__name__}: {first_line(failure)}). Expected: a local "
        f"path, or a network. Name a local path, or where there is a network: hf download --repo-type {kind} {name}"
    )
