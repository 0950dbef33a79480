"""The tokenised rows, kept in a file and mapped into memory: 32 bytes a row are held, however long the rows are.

A token that the model learns to write is stored as its bitwise complement, so it is negative. The file is scratch: each
call of `train` writes it anew, because tokenising is quick beside training. Of several processes the first writes, and
the others read (of several machines too: they share the run directory)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetune.data.tokens import TrainingTokens


@dataclass(frozen=True, slots=True)
class Sample:
    id: str
    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class TokenCache:
    """All samples in the order of the data set."""

    ids: NDArray[np.bytes_]
    starts: NDArray[np.int64]  # [rows + 1]
    stored: NDArray[np.int32]
    digest: str  # of ids, tokens and what is learned, in order

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Sample:
        stored = np.asarray(self.stored[self.starts[row] : self.starts[row + 1]])
        tokens = np.where(stored < 0, ~stored, stored).astype(np.int64)
        return Sample(self.ids[row].decode(), tokens, stored < 0)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        first = np.asarray(rows)
        return list((self.starts[first + 1] - self.starts[first]).tolist())

    @property
    def tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def longest(self) -> int:
        return int(np.diff(self.starts).max())

    @property
    def largest_token(self) -> int:
        return max(int(self.stored.max()), int(~self.stored.min()))


def write_token_cache(rows: Iterable[tuple[str, TrainingTokens]], path: Path) -> TokenCache:
    ids, starts, digest = bytearray(), [0], hashlib.sha256()
    with path.open("wb") as file:
        for row_id, tokens in rows:
            stored = np.array(tokens.ids, dtype=np.int32)
            learned = np.array(tokens.learned)
            stored[learned] = ~stored[learned]
            ids += row_id.encode()
            starts.append(starts[-1] + len(stored))
            digest.update(row_id.encode() + len(stored).to_bytes(8, "little") + stored.tobytes())
            file.write(stored.tobytes())
    with _index(path).open("wb") as file:
        np.savez(file, ids=np.frombuffer(bytes(ids), dtype="S16"), starts=starts, digest=digest.hexdigest())
    return read_token_cache(path)


def read_token_cache(path: Path) -> TokenCache:
    with np.load(_index(path), allow_pickle=False) as index:
        ids, starts, digest = index["ids"], index["starts"], str(index["digest"])
    stored = np.memmap(path, dtype=np.int32, mode="r") if starts[-1] else np.zeros(0, np.int32)
    return TokenCache(ids, starts, stored, digest)


def remove_token_cache(path: Path) -> None:
    for file in (path, _index(path)):
        file.unlink(missing_ok=True)


def _index(path: Path) -> Path:
    return path.with_suffix(".npz")
