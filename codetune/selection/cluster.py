"""Unit vectors -> which cluster each row is in: K-means (k-means++ start, Lloyd's iterations, ten starts).

The rows are to come sorted by id, so that the order of the data set changes nothing. One thread: scikit-learn adds the
partial sums of several in the order in which they finish. Says nothing about how many clusters are right. The vectors
are given away: their last bits may change."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from codetune.errors import InputError

STARTS = 10  # scikit-learn's own default before it trusted k-means++ with one


def cluster_rows(vectors: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int32]:
    """A label from 0 for every row; a label may stay unused where fewer than `clusters` vectors are distinct."""
    if clusters > len(vectors):
        raise InputError(
            f"select.clusters is {clusters}, the embeddings have {len(vectors)} rows. Expected: at most as many "
            f"clusters as rows. Set select.clusters to {max(1, len(vectors) // 10)}, or add rows to the data set."
        )
    # Copied only where it must be: for the variance that its tolerance is a part of, it holds one copy anyway.
    copied = not vectors.flags.writeable
    kmeans = KMeans(n_clusters=clusters, n_init=STARTS, random_state=seed, copy_x=copied)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that labels stay unused is no fault here
        labels: NDArray[np.int32] = kmeans.fit_predict(vectors).astype(np.int32)
    return labels
