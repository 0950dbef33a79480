"""Examples -> token ids in a scratch file that is mapped into memory, at 32 bytes of memory a row of any length.

Each token is an int32; one with loss (part of an answer) is stored as its bitwise complement, so it is negative. Rank 0
writes the file anew in each call of `train`; the ranks of all machines map it through the shared run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from codetune.data.tokens import DroppedSample, TrainingTokens, training_tokens
from codetune.project.sections import Project
from codetune.records import Example, Refusal


class TokenizedRows:
    """Iterates over `(id, tokens)` of the examples; counts what truncation and refusals lose."""

    def __init__(self, examples: Iterable[Example], project: Project, tokenizer: PreTrainedTokenizerBase) -> None:
        self._examples, self._project, self._tokenizer = examples, project, tokenizer
        self.dropped: list[Refusal] = []
        self.truncated_rows = self.lost_tokens = 0
        self.answer_end_tokens: frozenset[int] = frozenset()  # the last token of each answer that was not truncated

    def __iter__(self) -> Iterator[tuple[str, TrainingTokens]]:
        settings, chat_format = self._project.train, self._project.model.chat_format
        assert chat_format is not None  # found before the work began
        for example in self._examples:
            tokens = training_tokens(
                self._tokenizer, chat_format, example, settings.max_length, settings.too_long, settings.learn
            )
            if isinstance(tokens, DroppedSample):
                self.dropped.append(tokens.refusal)
                self.lost_tokens += tokens.tokens
                continue
            self.truncated_rows += tokens.truncated
            self.lost_tokens += tokens.lost_tokens
            if not tokens.truncated:
                last = max(index for index, learned in enumerate(tokens.learned) if learned)
                self.answer_end_tokens |= {tokens.ids[last]}
            yield example.id, tokens


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
    offsets: NDArray[np.int64]  # [rows + 1], of each row's first token in `stored`
    stored: NDArray[np.int32]
    digest: str  # SHA-256 of ids, tokens and loss mask, in order

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Sample:
        stored = np.asarray(self.stored[self.offsets[row] : self.offsets[row + 1]])
        tokens = np.where(stored < 0, ~stored, stored).astype(np.int64)
        return Sample(self.ids[row].decode(), tokens, stored < 0)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        first = np.asarray(rows)
        return list((self.offsets[first + 1] - self.offsets[first]).tolist())

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def longest(self) -> int:
        return int(np.diff(self.offsets).max())

    @property
    def largest_token(self) -> int:
        return max(int(self.stored.max()), int(~self.stored.min()))


def write_token_cache(rows: Iterable[tuple[str, TrainingTokens]], path: Path) -> TokenCache:
    ids, offsets, digest = bytearray(), [0], hashlib.sha256()
    with path.open("wb") as file:
        for row_id, tokens in rows:
            stored = np.array(tokens.ids, dtype=np.int32)
            learned = np.array(tokens.learned)
            stored[learned] = ~stored[learned]
            ids += row_id.encode()
            offsets.append(offsets[-1] + len(stored))
            digest.update(row_id.encode() + len(stored).to_bytes(8, "little") + stored.tobytes())
            file.write(stored.tobytes())
    with _index(path).open("wb") as file:
        np.savez(file, ids=np.frombuffer(bytes(ids), dtype="S16"), offsets=offsets, digest=digest.hexdigest())
    return read_token_cache(path)


def read_token_cache(path: Path) -> TokenCache:
    with np.load(_index(path), allow_pickle=False) as index:
        ids, offsets, digest = index["ids"], index["offsets"], str(index["digest"])
    stored = np.memmap(path, dtype=np.int32, mode="r") if offsets[-1] else np.zeros(0, np.int32)
    return TokenCache(ids, offsets, stored, digest)


def remove_token_cache(path: Path) -> None:
    for file in (path, _index(path)):
        file.unlink(missing_ok=True)


def _index(path: Path) -> Path:
    return path.with_suffix(".npz")
