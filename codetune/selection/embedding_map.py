"""Vectors -> points in the plane, for a picture: the first two principal components (Pearson 1901, Hotelling 1933).

Of large sets a fixed sample is drawn. Similar rows lie near each other; rows that lie near each other need not be
similar. Axes: N rows, D dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from codetune.selection.row_vectors import Floats, RowIndices, RowVectors, spread_sample

MAP_ROWS = 20_000  # some 45 bytes each in the file


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    rows: RowIndices  # the rows that are drawn
    points: Floats  # [rows, 2]
    variance: tuple[float, float] | None  # share of the variance along each axis; None where all vectors are equal


def map_embeddings(vectors: RowVectors) -> EmbeddingMap:
    """The sign of each axis is such that its largest weight is positive."""
    rows = spread_sample(len(vectors), MAP_ROWS)
    drawn = vectors.subset(rows)
    with threadpool_limits(1):
        mean = sum((chunk.sum(axis=0, dtype=np.float64) for chunk in drawn.chunks()), np.float64(0)) / len(rows)
        centered = (chunk.astype(np.float64) - mean for chunk in drawn.chunks())
        variances, directions = np.linalg.eigh(sum(chunk.T @ chunk for chunk in centered))  # ascending
        axes = directions[:, ::-1][:, :2]  # [D, 2]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        points = np.concatenate([(chunk.astype(np.float64) - mean) @ axes for chunk in drawn.chunks()])
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))  # vectors of one dimension
    first, second, *_ = (*variances[::-1].clip(0), 0.0)
    total = variances.clip(0).sum()
    return EmbeddingMap(rows, points, (float(first / total), float(second / total)) if total > 1e-12 else None)
