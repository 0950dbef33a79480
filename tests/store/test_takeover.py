"""What another run beside this one has sealed is copied whole and checked, or left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codetune.store.digests import Digests
from codetune.store.files import write_text
from codetune.store.manifest import Manifest, manifest_path, write_manifest
from codetune.store.run_directory import Run
from codetune.store.takeover import TAKEN_FROM, take_over


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return a_run(tmp_path / "mine")


def a_run(directory: Path) -> Run:
    write_text(directory / "project.json", "{}")
    return Run(directory)


def sealed(run: Run, artefact: Path, content: str = "scores", **changes: str) -> Manifest:
    write_text(artefact, content)
    digest = Digests(run).artefact(artefact)
    manifest = replace(Manifest("score", digest, 3, {}, {"model": "m"}, {"score.max_length": 256}, {}, 9.0), **changes)
    write_manifest(artefact, manifest)
    return manifest


def taken(run: Run, artefact: Path, model: str = "m") -> Manifest | None:
    return take_over(run, Digests(run), artefact, lambda manifest: manifest.inputs == {"model": model})


def test_a_wanted_artefact_is_copied_under_its_name_with_the_manifest_that_says_where_from(run: Run) -> None:
    other = a_run(run.directory.with_name("other"))
    manifest = sealed(other, other.completions("humaneval", "base"))
    found = taken(run, run.completions("humaneval", "base"))
    assert found == replace(manifest, facts={TAKEN_FROM: str(other.directory)})
    assert run.completions("humaneval", "base").read_text() == "scores"
    assert run.completions("humaneval", "base").stat().st_ino != other.completions("humaneval", "base").stat().st_ino
    assert [path.name for path in run.completions("humaneval", "base").parent.iterdir()] == ["base.jsonl"]


def test_embeddings_come_with_their_ids(run: Run) -> None:
    other = a_run(run.directory.with_name("other"))
    write_text(other.embedding_ids, "ids")
    sealed(other, other.embeddings, "vectors")
    assert taken(run, run.embeddings) is not None
    assert (run.embeddings.read_text(), run.embedding_ids.read_text()) == ("vectors", "ids")
    write_text(other.embedding_ids, "ids of other rows")
    assert taken(run, run.embeddings) is None
    assert run.embedding_ids.read_text() == "ids"


def test_the_first_unharmed_one_is_taken_and_one_that_is_not_wanted_is_not(run: Run) -> None:
    first, second = (a_run(run.directory.with_name(name)) for name in ("a", "b"))
    for other in (first, second):
        sealed(other, other.scores)
    write_text(first.scores, "changed")
    found = taken(run, run.scores)
    assert found is not None
    assert found.facts[TAKEN_FROM] == str(second.directory)
    assert taken(run, run.scores, model="another") is None


@pytest.mark.parametrize("harm", ["no manifest", "damaged manifest", "another version", "no project", "itself"])
def test_what_is_not_whole_and_of_this_version_is_left_alone(harm: str, run: Run) -> None:
    other = a_run(run.directory.with_name("other"))
    sealed(other, other.scores, **({"version": "0.0.1"} if harm == "another version" else {}))
    if harm == "no manifest":
        manifest_path(other.scores).unlink()
    if harm == "damaged manifest":
        write_text(manifest_path(other.scores), "{}")
    if harm == "no project":
        (other.directory / "project.json").unlink()
    mine = Run(other.directory) if harm == "itself" else run
    assert taken(mine, mine.scores) is None
    assert not run.scores.exists()
