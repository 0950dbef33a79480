"""Instructions -> unit vectors, so that like tasks lie close together; and an encoder that needs no model.

`HashingEncoder` is latent semantic analysis: hashed words and word pairs, weighted by how rare they are, projected by a
truncated SVD of a sample of the rows. It is fitted once, on one thread, and then a text's vector depends on the text
alone. It knows words, not meanings; encoders that do are `sentences.py`."""

from __future__ import annotations

import hashlib
import heapq
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from codetune.records import Example
from codetune.selection.score import Block, number_blocks, sorted_windows

FEATURES = 2**15
DIMENSIONS = 128
SAMPLE_ROWS = 20_000  # the SVD of more changes little and takes long


class Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A unit vector for each text: [texts, dim]."""
        ...

    def cut(self, texts: Sequence[str]) -> Sequence[bool]:
        """Of each text, whether it is longer than the encoder reads."""
        ...


def plan_embedding_blocks(examples: Iterable[Example], batch_size: int) -> Iterator[Block]:
    """Blocks of `batch_size` instructions of similar length; each row in exactly one."""
    return number_blocks(
        [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        for window in sorted_windows(examples, lambda example: len(example.instruction))
    )


def embed_block(examples: Sequence[Example], encoder: Encoder) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """The ids of the examples and, in the same order, their vectors."""
    vectors = encoder.encode([example.instruction for example in examples])
    return tuple(example.id for example in examples), vectors


class HashingEncoder:
    """A fitted projection from hashed words to unit vectors."""

    def __init__(self, projection: NDArray[np.float32]) -> None:
        self._projection = projection  # [dim, FEATURES], the weights of rare words included

    @classmethod
    def fit(cls, texts: Iterable[str], seed: int) -> Self:
        """The projection that keeps most of a sample of `texts`, whatever their order."""
        counts = _hashed(_sample(texts))
        weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        svd = TruncatedSVD(min(DIMENSIONS, counts.shape[0]), random_state=seed)
        # Several threads would add up in another order. Rows that are all equal have no variance to divide by, which
        # spoils a ratio that nobody reads here.
        with threadpool_limits(1), np.errstate(invalid="ignore"):
            svd.fit(weights.transform(counts))
        # The length of a row is set right at the end anyway, so its weights can be part of the projection.
        return cls((svd.components_ * weights.idf_).astype(np.float32))

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(np.load(path, allow_pickle=False))

    def save(self, path: Path) -> None:
        # Through memory: into a file numpy writes by itself, and says of a full disk only that too little was written.
        content = io.BytesIO()
        np.save(content, self._projection, allow_pickle=False)
        path.write_bytes(content.getvalue())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = _hashed(texts)
        counts.data = 1 + np.log(counts.data)  # as `sublinear_tf` in the fit
        with threadpool_limits(1):
            vectors: NDArray[np.float64] = counts @ self._projection.T.astype(np.float64)  # [texts, dim]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A text that shares no word with the sample has no direction: such texts are put together, on the first axis.
        strangers = lengths[:, 0] < 1e-9
        vectors[strangers, 0] = lengths[strangers] = 1
        unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
        return unit

    def cut(self, texts: Sequence[str]) -> Sequence[bool]:
        return [False] * len(texts)


def _hashed(texts: Sequence[str]) -> Any:
    """How often each hashed word and word pair is in each text: a sparse matrix [texts, FEATURES]."""
    vectorizer = HashingVectorizer(
        n_features=FEATURES, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", alternate_sign=False, norm=None
    )
    return vectorizer.transform(texts)


def _sample(texts: Iterable[str]) -> list[str]:
    # The smallest digests: a draw that does not depend on the order of rows, in one pass.
    keyed = ((hashlib.sha256(text.encode()).digest(), text) for text in texts)
    return [text for _, text in heapq.nsmallest(SAMPLE_ROWS, keyed)]
