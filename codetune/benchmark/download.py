"""EvalPlus' own benchmark file: from EvalPlus' cache, else downloaded into it from the address that EvalPlus uses.

EvalPlus' `make_cache` prints to stdout, waits without limit where there is no network, and leaves half a file when it
is killed. So only its address and the path in its cache are used, and the file is fetched here.
"""

from __future__ import annotations

import gzip
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

from evalplus.data.utils import get_dataset_metadata

from codetune.errors import CodetuneError, InputError
from codetune.store.files import write_bytes

CONNECT_SECONDS = 5


def cached_file(dataset: str, version: str) -> Path:
    """The path of the JSONL, after downloading it where it is missing. Raises InputError where the address cannot be
    reached, CodetuneError where the download breaks off."""
    address, cached = get_dataset_metadata(dataset, version, mini=False)
    path = Path(cached)
    if not path.is_file():
        write_bytes(path, _download(address, path))
    return path


def cache_path(dataset: str, version: str) -> Path:
    """Where EvalPlus keeps the JSONL; it need not be there."""
    return Path(get_dataset_metadata(dataset, version, mini=False)[1])


def _download(address: str, path: Path) -> bytes:
    remedy = f"Download {address} where there is a network, and put it, unpacked, at {path}."
    try:
        answer = urllib.request.urlopen(address, timeout=CONNECT_SECONDS)
    except OSError as why:  # URLError is one
        raise InputError(
            f"{address} cannot be reached ({why}), and {path} is not there. Expected: the benchmark in EvalPlus' "
            f"cache, or a network. {remedy}"
        ) from why
    try:
        with answer:
            return gzip.decompress(answer.read())
    except (OSError, HTTPException, EOFError, zlib.error) as why:
        raise CodetuneError(
            f"The download of {address} broke off ({why}). Expected: the whole file. Try again, or: {remedy}"
        ) from why
