"""Vectors -> rows that are distributed as all rows are, by learned points (Lyu et al. 2025, arXiv 2507.02378, after the
parametric model of Xie et al. 2023, arXiv 2303.14382).

The points start at rows, one for each row to take. Gradient descent draws each row's most similar point towards the row
(the points match the distribution) and drives the points apart (no two stand for the same rows). In the end each point
takes the nearest row that is not taken yet. With rows f, points p, cosine similarity s and temperature t the loss is

    - mean over f of s(f, nearest p) / t  +  BALANCE * mean over p of log(sum over other points r of exp(s(p, r) / t))

Every row is compared with every point in each iteration. Larger sets are therefore cut into cells of at most
`CELL_ROWS` rows, halved again and again across the direction in which they vary most; each cell has its own points.

Axes: N rows of a cell, P points, D dimensions."""

from __future__ import annotations

import numpy as np

from codetune.selection.quotas import apportion
from codetune.selection.row_vectors import RowIndices, RowVectors, Vectors, map_in_threads, spread_sample

LEARNING_RATE, ITERATIONS, TEMPERATURE, BALANCE = 1e-3, 300, 0.07, 1.0  # as published
MOMENTUM, SCALE_MOMENTUM, EPSILON = 0.9, 0.999, 1e-8  # of Adam (Kingma and Ba 2015), its defaults
CELL_ROWS = 512
DIRECTION_ROWS, DIRECTION_STEPS = 2048, 16  # a sample and power iterations find the direction of largest variance


def parametric_rows(vectors: RowVectors, quota: int, seed: int) -> RowIndices:
    """The positions of `quota` rows."""
    cells = _cells(vectors, np.arange(len(vectors)))
    sizes = np.array([len(cell) for cell in cells])
    quotas = apportion(sizes, sizes, quota).tolist()

    def choose(index: int) -> RowIndices:
        cell = cells[index]
        return cell[rows_near_points(vectors.take(cell), quotas[index], np.random.default_rng((seed, index)))]

    return np.concatenate([np.empty(0, dtype=np.int64), *map_in_threads(choose, range(len(cells)))])


def rows_near_points(rows: Vectors, quota: int, random: np.random.Generator) -> RowIndices:
    """Positions of the rows [N, D] that the learned points take."""
    if quota in (0, len(rows)):
        return np.arange(quota)
    points = learn_points(rows, rows[np.sort(random.choice(len(rows), quota, replace=False))])
    similarities = points @ rows.T  # [P, N]
    taken = np.empty(quota, dtype=np.int64)
    for point, row in enumerate(similarities):
        taken[point] = np.argmax(row)
        similarities[point + 1 :, taken[point]] = -np.inf
    return taken


def learn_points(rows: Vectors, points: Vectors) -> Vectors:
    """The points [P, D] as unit vectors after `ITERATIONS` steps of Adam."""
    points, mean, square = points.copy(), np.zeros_like(points), np.zeros_like(points)
    for step in range(1, ITERATIONS + 1):
        length = np.maximum(np.linalg.norm(points, axis=1, keepdims=True), EPSILON).astype(np.float32)
        unit = points / length
        _, gradient = loss_and_gradient(rows, unit)
        # The loss knows the directions of the points alone: what would change their lengths drops out.
        gradient = (gradient - (gradient * unit).sum(axis=1, keepdims=True) * unit) / length
        mean += (1 - MOMENTUM) * (gradient - mean)
        square += (1 - SCALE_MOMENTUM) * (gradient * gradient - square)
        scale = np.sqrt(square / np.float32(1 - SCALE_MOMENTUM**step)) + EPSILON
        points -= np.float32(LEARNING_RATE / (1 - MOMENTUM**step)) * mean / scale
    unit_points: Vectors = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), EPSILON)
    return unit_points


def loss_and_gradient(rows: Vectors, points: Vectors) -> tuple[float, Vectors]:
    """The loss of unit points, and its gradient [P, D] by their coordinates."""
    similarities = rows @ points.T  # [N, P]
    nearest = np.argmax(similarities, axis=1)  # [N]
    by_point = np.argsort(nearest, kind="stable")
    owners, starts = np.unique(nearest[by_point], return_index=True)
    gradient = np.zeros_like(points)
    gradient[owners] = -np.add.reduceat(rows[by_point], starts, axis=0) / np.float32(len(rows) * TEMPERATURE)
    matching = -float(similarities[np.arange(len(rows)), nearest].mean(dtype=np.float64)) / TEMPERATURE
    if len(points) == 1:
        return matching, gradient
    logits = points @ points.T / np.float32(TEMPERATURE)  # [P, P]
    np.fill_diagonal(logits, -np.inf)
    highest = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - highest)
    sums = weights.sum(axis=1, keepdims=True)
    weights *= np.float32(BALANCE / (len(points) * TEMPERATURE)) / sums
    gradient += (weights + weights.T) @ points
    return matching + BALANCE * float((highest + np.log(sums)).mean(dtype=np.float64)), gradient


def _cells(vectors: RowVectors, rows: RowIndices) -> list[RowIndices]:
    """Cells of similar rows and of sizes that differ by one at most; the rows of each are ascending."""
    if len(rows) <= CELL_ROWS:
        return [rows]
    sample = vectors.take(rows[spread_sample(len(rows), DIRECTION_ROWS)])
    cell = vectors.subset(rows)
    along = np.concatenate([np.round(chunk @ _direction(sample), 6) for chunk in cell.chunks()])
    order = np.argsort(along, kind="stable")  # equal rows stay in the order of their ids
    half = len(rows) // 2
    return [*_cells(vectors, np.sort(rows[order[:half]])), *_cells(vectors, np.sort(rows[order[half:]]))]


def _direction(sample: Vectors) -> Vectors:
    """The direction in which the rows of a sample vary most, by power iteration from the row farthest from the mean."""
    centered = sample - sample.mean(axis=0)
    direction: Vectors = centered[np.argmax((centered * centered).sum(axis=1))]
    for _ in range(DIRECTION_STEPS):
        direction = (centered @ direction) @ centered
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
    return direction
