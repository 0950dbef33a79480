"""Instructions -> unit vectors: similar tasks get similar directions.

Two encoders. `SentenceEncoder` is a sentence-transformers model (Reimers and Gurevych 2019, arXiv 1908.10084; the
paper's is all-mpnet-base-v2, with mean pooling). `HashingEncoder` needs no model: latent semantic analysis (Deerwester
et al. 1990) of hashed words and word pairs, weighted by inverse document frequency and projected by a truncated SVD. It
compares words, not meanings.
"""

from __future__ import annotations

import copy
import hashlib
import heapq
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sentence_transformers import SentenceTransformer

FEATURES = 2**15
DIMENSIONS = 128
SAMPLE_ROWS = 20_000  # an SVD of more rows takes long and changes little
CPU_BATCH = 8  # more only adds padding on a CPU: 96 real instructions took 2.4 s by 8, and 3.6 s by 32


class Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A unit vector for each text: [texts, dimensions]."""
        ...

    def truncates(self, texts: Sequence[str]) -> Sequence[bool]:
        """For each text, whether it is longer than the encoder's window."""
        ...


class HashingEncoder:
    """A projection from counts of hashed words to unit vectors. It is fitted once; then the vector of a text depends on
    that text alone. All sums run on one thread: several would add up in another order, in other bits."""

    def __init__(self, projection: NDArray[np.float32]) -> None:
        self._projection = projection  # [DIMENSIONS, FEATURES], multiplied by the inverse document frequencies

    @classmethod
    def fit(cls, texts: Iterable[str], seed: int) -> Self:
        """Fits the SVD to a sample of `texts`, whatever their order."""
        counts = _word_counts(_sample(texts))
        weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        svd = TruncatedSVD(min(DIMENSIONS, counts.shape[0]), random_state=seed)
        # Rows that are all equal have no variance; the explained-variance ratio, which is not used here, divides by it.
        with threadpool_limits(1), np.errstate(divide="ignore", invalid="ignore"):
            svd.fit(weights.transform(counts))
        # The frequencies can be part of the projection, because `encode` normalises each vector at the end.
        return cls((svd.components_ * weights.idf_).astype(np.float32))

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(np.load(path, allow_pickle=False))

    def save(self, path: Path) -> None:
        # Through memory, because numpy's own writer reports a full disk without the reason.
        content = io.BytesIO()
        np.save(content, self._projection, allow_pickle=False)
        path.write_bytes(content.getvalue())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = _word_counts(texts)
        counts.data = 1 + np.log(counts.data)  # `sublinear_tf`, as in `fit`
        with threadpool_limits(1):
            vectors: NDArray[np.float64] = counts @ self._projection.T.astype(np.float64)  # [texts, DIMENSIONS]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A text without any word of the sample has no direction. All such texts get the first axis.
        is_unknown = norms[:, 0] < 1e-9
        vectors[is_unknown, 0] = norms[is_unknown] = 1
        unit: NDArray[np.float32] = (vectors / norms).astype(np.float32)
        return unit

    def truncates(self, texts: Sequence[str]) -> Sequence[bool]:
        return [False] * len(texts)


class SentenceEncoder:
    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        model.tokenizer.split_special_tokens = True  # `[SEP]` in an instruction is text
        # A copy, because `truncates` runs in another thread than `encode`, and switching the truncation of one
        # tokenizer on and off would change the other thread's tokens.
        self._tokenizer = copy.deepcopy(model.tokenizer)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        batch = CPU_BATCH if self._model.device.type == "cpu" else max(1, len(texts))
        vectors = self._model.encode(list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    def truncates(self, texts: Sequence[str]) -> Sequence[bool]:
        longest = self._model.max_seq_length
        if longest is None:
            return [False] * len(texts)
        ids = self._tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(tokens) > longest for tokens in ids]


def load_encoder(directory: Path, device: str) -> SentenceEncoder:
    """Loads the sentence-transformers model in a directory: safetensors weights only, and no code that comes with it.

    Raises ModelError where the directory holds no such model."""
    from codetune.model.pretrained import read_encoder  # torch, which the hashing encoder need not wait for

    return SentenceEncoder(read_encoder(directory, device).eval())


def _word_counts(texts: Sequence[str]) -> csr_matrix:
    """The counts of each hashed word and word pair in each text: a sparse matrix [texts, FEATURES]."""
    vectorizer = HashingVectorizer(
        n_features=FEATURES, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", alternate_sign=False, norm=None
    )
    return vectorizer.transform(texts)


def _sample(texts: Iterable[str]) -> list[str]:
    """The texts with the smallest digests: one pass, and the order of rows does not matter."""
    keyed = ((hashlib.sha256(text.encode()).digest(), text) for text in texts)
    return [text for _, text in heapq.nsmallest(SAMPLE_ROWS, keyed)]
