"""Manifests: read as they were written; a damaged one is an error that names the fix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codetune.errors import StaleError
from codetune.store.manifest import Manifest, manifest_path, read_manifest, write_manifest

MANIFEST = Manifest(
    "score", "00ff", 3, {"duplicate": 1}, {"dataset": "aa"}, {"score.max_length": 512}, {}, 1.5, {"note": ["é"]}
)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    artefact = tmp_path / "scores.jsonl"
    artefact.touch()
    write_manifest(artefact, MANIFEST)
    assert read_manifest(artefact) == MANIFEST
    manifest_path(artefact).unlink()
    assert read_manifest(artefact) is None


def test_a_manifest_without_its_artefact_is_none(tmp_path: Path) -> None:
    write_manifest(tmp_path / "scores.jsonl", MANIFEST)
    assert read_manifest(tmp_path / "scores.jsonl") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff", b'{"stage": "score", "unknown": 1}'])
def test_a_damaged_manifest_is_an_error_with_the_command_that_moves_it_away(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").touch()
    manifest_path(tmp_path / "scores.jsonl").write_bytes(content)
    with pytest.raises(StaleError, match=r"scores\.jsonl\.seal is damaged .*mv .*scores\.jsonl\.seal\.old$"):
        read_manifest(tmp_path / "scores.jsonl")


@pytest.mark.parametrize("field", ["stage", "digest", "rows", "refused", "inputs", "settings", "overrides", "facts"])
def test_a_manifest_with_a_field_of_another_type_is_damaged(field: str, tmp_path: Path) -> None:
    artefact = tmp_path / "scores.jsonl"
    artefact.touch()
    write_manifest(artefact, MANIFEST)
    document = json.loads(manifest_path(artefact).read_text())
    manifest_path(artefact).write_text(json.dumps({**document, field: [1]}))
    with pytest.raises(StaleError, match="a field has the wrong type"):
        read_manifest(artefact)


def test_a_manifest_of_an_older_version_names_that_version_and_what_to_do(tmp_path: Path) -> None:
    artefact = tmp_path / "scores.jsonl"
    artefact.touch()
    write_manifest(artefact, replace(MANIFEST, version="0.1.0"))
    document = json.loads(manifest_path(artefact).read_text(encoding="utf-8"))
    for added in ("made", "names"):
        del document[added]
    manifest_path(artefact).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(StaleError, match=r"was made by codetune 0\.1\.0\. .*new directory.*mv .*\.seal\.old$"):
        read_manifest(artefact)


def test_manifests_with_other_contents_differ() -> None:
    assert replace(MANIFEST, rows=4) != MANIFEST
