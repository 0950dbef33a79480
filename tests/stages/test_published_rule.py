"""The published selection, with a preset of the paper: the rows of a plain implementation of the published rule (Lyu et
al. 2025, arXiv 2504.12687, sec. 3) on the same scores and embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans

from codetune.project.keys import keys
from codetune.project.presets import PRESETS
from codetune.stages.stage import RunContext
from codetune.store.manifest import read_manifest, write_manifest
from codetune.store.row_artefacts import read_excluded
from tests import pipeline
from tests.small_world import context_of, make_small_world

ROWS, DIMENSIONS, CLUSTERS = 240, 24, 10
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
OF_THE_PAPER = ("deepseek-oss", "codellama-evol")


def published_rows(vectors: Mapping[str, Vector], ifd: Mapping[str, float], ratio: float, seed: int) -> set[str]:
    """K-means over all rows; of each cluster the rows with an IFD below 1, the hardest int(n * ratio) of these n."""
    ids = sorted(vectors)
    labels = KMeans(CLUSTERS, n_init=10, random_state=seed).fit(np.array([vectors[name] for name in ids])).labels_
    chosen: set[str] = set()
    for cluster in range(CLUSTERS):
        members = [name for name, label in zip(ids, labels, strict=True) if label == cluster and name in ifd]
        kept = sorted((name for name in members if ifd[name] < 1), key=lambda name: (-ifd[name], name))
        chosen.update(kept[: int(len(kept) * ratio)])
    return chosen


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Vector], dict[str, float]]:
    """A project whose scores and embeddings are made: clusters of unequal size, IFDs with ties, above 1, and none."""
    project = make_small_world(tmp_path_factory.mktemp("published"), ROWS)
    context, random = context_of(project, score__empty_prompt=False), np.random.default_rng(7)
    pipeline.score(context)
    pipeline.embed(context)
    ids = context.run.embedding_ids.read_text(encoding="ascii").split()
    centers = random.standard_normal((12, DIMENSIONS))
    vectors = centers[random.integers(0, 12, ROWS) % 9] + 0.6 * random.standard_normal((ROWS, DIMENSIONS))
    stored = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    np.save(context.run.embeddings, stored)
    ifd = {name: float(value) for name, value in zip(ids, np.round(random.uniform(0.3, 1.15, ROWS), 2), strict=True)}
    refused = set(ids[::23])
    lines = [score_line(name, None if name in refused else ifd[name]) for name in ids]
    context.run.scores.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for path in (context.run.embeddings, context.run.scores):
        manifest = read_manifest(path)
        assert manifest is not None
        write_manifest(path, replace(manifest, digest=context.digests.artefact(path)))
    scored = {name: value for name, value in ifd.items() if name not in refused}
    return project, dict(zip(ids, stored, strict=True)), scored


def score_line(name: str, ifd: float | None) -> dict[str, Any]:
    if ifd is None:
        return {"id": name, "refused": "no memory"}
    likelihoods = {"nll_conditional": float(np.log(ifd)) + 1, "nll_unconditional": 1.0}
    return {"id": name, "ifd": ifd, **likelihoods, "answer_tokens": 40, "truncated": False}


def taken(context: RunContext) -> Sequence[str]:
    return [json.loads(line)["id"] for line in context.run.selection.read_text(encoding="utf-8").splitlines()]


def settings_of(preset: str) -> dict[str, Any]:
    """Every key of `select` as the preset has it."""
    return {key: PRESETS[preset].get(key, field.default) for key, field in keys() if key.startswith("select.")}


@pytest.mark.parametrize("preset", OF_THE_PAPER)
@pytest.mark.parametrize("ratio", [0.29, 0.4, 1.0])
def test_a_preset_of_the_paper_takes_the_published_rows(
    planted: tuple[Path, dict[str, Vector], dict[str, float]], preset: str, ratio: float
) -> None:
    project, vectors, ifd = planted
    flags = {key.replace(".", "__"): value for key, value in settings_of(preset).items()}
    context = context_of(project, **{**flags, "select__ratio": ratio, "score__empty_prompt": False})
    pipeline.select(context)
    chosen, why = taken(context), dict(read_excluded(context.run))
    assert sorted(chosen) == sorted(published_rows(vectors, ifd, ratio, 42))
    assert why.keys() == vectors.keys() - set(chosen)
    mismatched = {name for name, reason in why.items() if reason.startswith("mismatched pair: IFD ")}
    assert mismatched == {name for name, value in ifd.items() if value >= 1}


@pytest.mark.parametrize("preset", OF_THE_PAPER)
def test_the_presets_of_the_paper_add_no_filter_of_ours(preset: str) -> None:
    published = {
        "select.strategy": "ifd_cluster",
        "select.clusters": CLUSTERS,
        "select.ratio": 0.4,
        "select.ratio_of": "eligible",
        "select.count": None,
        "select.max_ifd": 1.0,
        "select.mismatch": "ifd",
        "select.deduplicate": "none",
        "select.decontaminate": [],
        "select.checks": [],
        "select.best_answer": False,
    }
    assert settings_of(preset).items() >= published.items()
