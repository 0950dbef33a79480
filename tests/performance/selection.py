"""Time and memory of K-means and of every strategy on many rows, and how good the clusters of a large set are.

    python -m tests.performance.selection [clusters] [compared] [strategies] [--directory DIR]
        [--rows 100000] [--many 1000000] [--compared 150000]

Vectors are made: 768 dimensions, 40 groups of unequal size with structure inside, in a memory-mapped file as select
reads them. The strategies take 40 % of `--rows` rows. K-means makes ten clusters of 75,000 rows as published, in turns
with scikit-learn's KMeans on one thread, whose labels have to be the same, and of `--many` rows from a sample; on
`--compared` rows both ways are held against each other by their sums of squared distances. Memory is what no file backs
(RssAnon), above what the process had before. Each part has a record of its own. Needs 4 GB of disk and a quarter of an
hour of one core."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from codetune.project.sections import Selection
from codetune.selection import cluster
from codetune.selection.cluster import STARTS, cluster_rows
from codetune.selection.row_vectors import RowVectors
from codetune.selection.strategies import STRATEGIES, Candidates, SelectionInputs
from tests.performance.million import Sampler, anonymous_bytes
from tests.performance.record import write_record

DIMENSIONS, GROUPS, CLUSTERS, PUBLISHED_ROWS, SEED, TURNS = 768, 40, 10, 75_000, 42, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--compared", type=int, default=150_000)
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    for part in given.parts:
        measure_part, rows = PARTS[part], vars(given)[ROWS_OF[part]]
        with tempfile.TemporaryDirectory(dir=given.directory) as name:
            make_vectors(Path(name) / "vectors.npy", max(rows, PUBLISHED_ROWS))
            figures = measure_part(Path(name) / "vectors.npy", rows)
        print(write_record(f"selection-{part}", {"rows": rows, "dimensions": DIMENSIONS}, figures), flush=True)


def make_vectors(path: Path, rows: int) -> None:
    random = np.random.default_rng(SEED)
    centers = random.standard_normal((GROUPS, DIMENSIONS), dtype=np.float32)
    directions = random.standard_normal((24, DIMENSIONS), dtype=np.float32)
    shares = random.dirichlet(np.full(GROUPS, 3.0))
    stored = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMENSIONS))
    for first in range(0, rows, 10_000):
        chunk = min(10_000, rows - first)
        vectors = centers[random.choice(GROUPS, chunk, p=shares)]
        vectors += 0.2 * random.standard_normal((chunk, 24), dtype=np.float32) @ directions
        vectors += 0.7 * random.standard_normal((chunk, DIMENSIONS), dtype=np.float32)
        stored[first : first + chunk] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    stored.flush()


def cluster_figures(path: Path, many: int) -> dict[str, Any]:
    stored = np.load(path, mmap_mode="r")
    of_many = measure(lambda: cluster_rows(stored[:many], CLUSTERS, SEED))
    return {"as_published": [beside_scikit_learn(stored[:PUBLISHED_ROWS]) for _ in range(TURNS)], str(many): of_many}


def beside_scikit_learn(vectors: NDArray[np.float32]) -> dict[str, Any]:
    labels: list[NDArray[np.int32]] = []

    def of_scikit_learn() -> NDArray[np.int32]:
        with threadpool_limits(1):
            labels.append(KMeans(CLUSTERS, n_init=STARTS, random_state=SEED).fit(vectors).labels_)
        return labels[-1]

    def ours() -> NDArray[np.int32]:
        labels.append(cluster_rows(vectors, CLUSTERS, SEED))
        return labels[-1]

    found = {"scikit_learn": measure(of_scikit_learn, "scikit-learn"), "ours": measure(ours)}

    def times_as_fast(unit: str) -> float:
        return round(found["scikit_learn"][unit] / found["ours"][unit], 2)

    return {
        **found,
        "same_labels": labels[0].tobytes() == labels[1].tobytes(),
        "times_as_fast": times_as_fast("seconds"),
        "times_as_fast_by_processor_time": times_as_fast("processor_seconds"),
    }


def compare(path: Path, rows: int) -> dict[str, float]:
    """The sum of squared distances of the clusters from a sample, over that of K-means of all rows."""
    vectors = np.load(path, mmap_mode="r")[:rows]
    whole_rows = cluster.WHOLE_ROWS
    cluster.WHOLE_ROWS = rows
    whole = inertia(vectors, cluster_rows(vectors, CLUSTERS, SEED))
    cluster.WHOLE_ROWS = min(whole_rows, rows - 1)
    sampled = inertia(vectors, cluster_rows(vectors, CLUSTERS, SEED))
    cluster.WHOLE_ROWS = whole_rows
    print(f"inertia of {rows:,} rows: {sampled / whole:.5f} of that of all rows", flush=True)
    return {"whole": whole, "sampled": sampled, "ratio": sampled / whole}


def inertia(vectors: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """The rows have length 1: what is left of it is their distance from the sums of their clusters."""
    sums = np.zeros((CLUSTERS, DIMENSIONS))
    for first in range(0, len(vectors), 10_000):
        members = labels[first : first + 10_000] == np.arange(CLUSTERS)[:, None]
        sums += members.astype(np.float32) @ vectors[first : first + 10_000]
    sizes = np.maximum(np.bincount(labels, minlength=CLUSTERS), 1)
    return float(len(vectors) - ((sums**2).sum(axis=1) / sizes).sum())


def strategy_figures(path: Path, rows: int) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    inputs = SelectionInputs(
        np.sort(random.integers(0, 2**63, rows, dtype=np.uint64)),
        random.uniform(0.2, 0.99, rows),
        random.integers(0, CLUSTERS, rows).astype(np.int32),
        nll_conditional=random.uniform(0.1, 2, rows),
        answer_tokens=random.integers(1, 500, rows).astype(np.float64),
        sifd=random.uniform(0.2, 0.99, rows),
        vectors=RowVectors(np.load(path, mmap_mode="r"), random.permutation(rows)),
    )
    candidates = Candidates(inputs, np.arange(rows), Selection(), SEED)
    return {name: measure(lambda rule=rule: rule.choose(candidates), name) for name, rule in STRATEGIES.items()}


def measure(work: Callable[[], NDArray[Any]], name: str = "K-means") -> dict[str, Any]:
    before = anonymous_bytes()
    with Sampler() as sampler:
        began, processor = time.monotonic(), time.process_time()
        rows = len(work())
        seconds, processor_seconds = time.monotonic() - began, time.process_time() - processor
    figures = {
        "rows": rows,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "added_bytes": sampler.peak - before,
    }
    print(name, figures, flush=True)
    return figures


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "clusters": cluster_figures,
    "compared": compare,
    "strategies": strategy_figures,
}
ROWS_OF = {"clusters": "many", "compared": "compared", "strategies": "rows"}

if __name__ == "__main__":
    main()
