"""Parquet files and data sets on the hub -> their rows, streaming. Apart from `source.py`, because what they stand on
takes a second to import, which a JSON file need not wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from codetune.data.files import Row
from codetune.data.hub import hub_snapshot, is_hub_id
from codetune.errors import DataError
from codetune.text import first_line

BATCH_ROWS = 1024


def read_parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{shown}:row ", number, value)
    except (pyarrow.ArrowException, OSError) as why:
        raise DataError(
            f"{shown} cannot be read after row {number} ({why}). Expected: a whole Parquet file. Copy it again."
        ) from why


def find_hub_dataset(name: str) -> Path:
    """The directory of the data set's snapshot, named by its commit; downloaded where it is not in the cache."""
    if not is_hub_id(name):
        raise DataError(
            f"{name} is neither a file nor a hub id. Expected: a data file, a directory, a glob, or an id such as "
            "ise-uiuc/Magicoder-OSS-Instruct-75K. Mend dataset.path."
        )
    return hub_snapshot(name, "dataset", ["*"])


def read_hub_rows(snapshot: Path, name: str, split: str) -> Iterator[Row]:
    """The rows of one split, which `datasets` finds by the data set's card or the names of its files."""
    try:
        # From the snapshot, so that nothing is asked of the network and the commit is the one in the fingerprint.
        rows = datasets.load_dataset(str(snapshot), split=split, streaming=True)
        for number, value in enumerate(rows, start=1):
            yield Row(f"{name}:row ", number, value)
    except (ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError) as why:
        raise DataError(
            f"The split {split} of {name} cannot be read ({first_line(why)}). Expected: a split that "
            "the data set has. Set dataset.split, or name a file of the data set."
        ) from why
