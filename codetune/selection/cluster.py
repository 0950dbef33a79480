"""Unit vectors -> the cluster of each row, by K-means (Lloyd 1982) from k-means++ starts (Arthur and Vassilvitskii
2007). Does not say how many clusters are right."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from codetune.errors import InputError

STARTS = 10  # scikit-learn's default before 1.4; its default with k-means++ is one now


def cluster_rows(vectors: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int32]:
    """A label from 0 to `clusters` - 1 for each row: [rows, dimensions] -> [rows].

    The caller sorts the rows by id, so that the order of the data set changes nothing. Writable `vectors` are used as
    working memory, and their last bits may change. A label stays unused where fewer vectors are distinct. Raises
    InputError where there are more clusters than rows."""
    if clusters > len(vectors):
        raise InputError(
            f"select.clusters is {clusters}, the embeddings have {len(vectors)} rows. Expected: at most as many "
            f"clusters as rows. Set select.clusters to {max(1, len(vectors) // 10)}, or add rows to the data set."
        )
    # A second copy would double the memory: KMeans makes one already, for the variance in its tolerance.
    kmeans = KMeans(n_clusters=clusters, n_init=STARTS, random_state=seed, copy_x=not vectors.flags.writeable)
    # One thread: with several, scikit-learn adds partial sums in the order in which the threads finish.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # unused labels are expected here
        labels: NDArray[np.int32] = kmeans.fit_predict(vectors).astype(np.int32)
    return labels
