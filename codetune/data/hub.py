"""A repository on the Hugging Face Hub -> its snapshot in the local cache, and the rows of a data set there.

A repository in the cache needs no request. Otherwise the Hub is asked once whether it exists, before anything is
downloaded, and is given up after seconds, even where the name server is silent."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import huggingface_hub.constants
import huggingface_hub.errors
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from codetune.data.files import TABLE_BATCH_ROWS, ColumnChoice, FileRow, chosen_columns, table_rows, unread_rows
from codetune.errors import CodetuneError, DataError, ModelError, first_line

RepositoryKind = Literal["model", "dataset"]
T = TypeVar("T")
OFFLINE = "HF_HUB_OFFLINE is set"
WELL_KNOWN = "sentence-transformers/all-mpnet-base-v2"  # the encoder of every project that names no other
ANSWER_SECONDS = 4.0  # the refusal as a whole is promised within five
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
NOT_FOUND_ERRORS = {"model": ModelError, "dataset": DataError}

# huggingface_hub 1 stands on httpx, version 2 on httpx2: its own errors module has the right class.
TransportError: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]


def hub_snapshot(name: str, kind: RepositoryKind, patterns: Sequence[str]) -> Path:
    """The directory of the newest snapshot, named by its commit; downloads the files that match `patterns`.

    Raises ModelError or DataError where the repository is unknown or the Hub cannot be reached, and CodetuneError where
    the download breaks off."""
    allowed = list(patterns)
    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=allowed, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    require_known(name, kind)
    with _downloading(name, kind):
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=allowed))


def hub_files(name: str, kind: RepositoryKind, patterns: Sequence[str], directory: Path) -> Path:
    """Downloads the files that match `patterns` into `directory`, not into the cache. Raises as `hub_snapshot`."""
    require_known(name, kind)
    with _downloading(name, kind):
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=list(patterns), local_dir=directory))


def dataset_snapshot(name: str) -> Path:
    """The directory of the newest snapshot of a data set, with all its files. Raises as `hub_snapshot`."""
    if not is_hub_id(name):
        raise DataError(
            f"{name} is neither a file nor a Hub id. Expected: a data file, a directory, a glob, or an id such as "
            "ise-uiuc/Magicoder-OSS-Instruct-75K. Fix dataset.path."
        )
    return hub_snapshot(name, "dataset", ["*"])


def read_hub_rows(snapshot: Path, name: str, split: str, choose: ColumnChoice) -> Iterator[FileRow]:
    """The rows of one split, which `datasets` finds by the data set's card or by the names of its files. Tables are
    converted here, as those of local files: a value in a column that is not read can do no harm."""
    import datasets  # here, because it takes more than a second that models and local files need not spend
    import pyarrow

    try:
        # From the snapshot, so that no request is made and the rows are those of the commit in the fingerprint.
        rows = datasets.load_dataset(str(snapshot), split=split, streaming=True)
        number = 0
        for table in rows.with_format("arrow").iter(TABLE_BATCH_ROWS):
            columns = chosen_columns(table.column_names, choose, name)
            if columns:
                yield from table_rows(table.select(columns), name, number)
            else:
                yield from unread_rows(table.column_names, table.num_rows, name, number)
            number += table.num_rows
    except (ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"The split {split} of {name} cannot be read ({first_line(error)}). Expected: a split that the data set "
            "has. Set dataset.split, or name a file of the data set."
        ) from error


def is_cached(name: str, kind: RepositoryKind) -> bool:
    """Whether a snapshot is in the local cache. Makes no request."""
    try:
        snapshot_download(name, repo_type=kind, local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    return True


def hub_cache() -> Path:
    """The directory of the local cache; it need not exist."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


def unreachable_hub() -> str | None:
    """Why the Hub does not answer, after some seconds at most; None where it does. Asks for a name, downloads
    nothing."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return OFFLINE
    failure = _ask_hub(WELL_KNOWN, "model")
    return None if failure is None else f"{type(failure).__name__}: {first_line(failure)}"


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id: one word, or two with a slash between.

    >>> is_hub_id("deepseek-ai/deepseek-coder-6.7b-base"), is_hub_id("./base"), is_hub_id("a/b/c")
    (True, False, False)
    """
    return HUB_ID.fullmatch(name) is not None


def require_known(name: str, kind: RepositoryKind) -> None:
    """Raises ModelError or DataError where the Hub does not know the repository, or cannot be reached."""
    failure = _ask_hub(name, kind)
    if failure is None:
        return
    missing = f"{name} was not found locally or in the Hub cache"
    if isinstance(failure, RepositoryNotFoundError):
        raise NOT_FOUND_ERRORS[kind](
            f"{missing}, and the Hub has no {kind} of that name that you may read. Expected: a local path or the id of "
            f"a {kind} on the Hub. Fix the name, or log in if it is private: hf auth login"
        )
    raise NOT_FOUND_ERRORS[kind](
        f"{missing}, and the Hub is unreachable ({type(failure).__name__}: {first_line(failure)}). Expected: a local "
        f"path, or a network. Name a local path, or download it on a machine with a network: "
        f"hf download --repo-type {kind} {name}"
    )


@contextmanager
def _downloading(name: str, kind: RepositoryKind) -> Iterator[None]:
    try:
        yield
    except (OSError, TransportError) as error:
        raise CodetuneError(
            f"The download of the {kind} {name} from the Hub was interrupted ({type(error).__name__}: "
            f"{first_line(error)}). The files that have arrived are kept: run the same command again."
        ) from error


def ask_in_time(question: Callable[[], T]) -> T | Exception:
    """The answer of the Hub, or why there is none after at most ANSWER_SECONDS."""
    answers: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(question())
        except (OSError, TransportError) as error:
            answers.put(error)

    # A thread, because no timeout applies to the name resolver; a daemon, so that a hanging one delays no exit.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        return TimeoutError(f"no answer in {ANSWER_SECONDS:g} s")


def _ask_hub(name: str, kind: RepositoryKind) -> Exception | None:
    """None where the Hub knows the repository, else why not."""
    answer = ask_in_time(lambda: HfApi().repo_info(name, repo_type=kind, timeout=ANSWER_SECONDS))
    return answer if isinstance(answer, Exception) else None
