"""How an artefact stands: done, stale and why, partial, missing; and from what it is about to be made."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from codetune.errors import StaleError
from codetune.project.file import read_project
from codetune.project.sections import Project
from codetune.stages.status import (
    Recipe,
    RowStage,
    RunContext,
    content_digest,
    dataset_digest,
    require,
    settings_of,
    stage_status,
)
from codetune.store.digests import Digests
from codetune.store.files import write_text
from codetune.store.manifest import Manifest, manifest_path, write_manifest
from codetune.store.run_directory import open_run

ROW = '{{"instruction": "Add {0}.", "output": "x + {0}"}}\n'
PROJECT = """\
name: tiny
dataset: {path: data.jsonl, instruction: instruction, response: output}
model: {path: base}
score: {max_length: 512}
select: {ratio: 0.5}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_text(tmp_path / "codetune.yaml", PROJECT)
    write_data(tmp_path, 3)
    return tmp_path


@pytest.mark.parametrize("stage", ["score", "embed", "select", "train"])
def test_what_was_never_made_is_missing(stage: RowStage, root: Path) -> None:
    assert stage_status(context_of(root), stage).state == "missing"


@pytest.mark.parametrize("stage", ["score", "embed", "train"])
def test_what_was_begun_is_partial(stage: RowStage, root: Path) -> None:
    context = context_of(root)
    (context.run.train if stage == "train" else context.run.parts(context.artefact(stage))).mkdir()
    assert stage_status(context, stage).state == "partial"
    with pytest.raises(StaleError, match=f"is not finished.*Run: codetune {stage}"):
        require(context, stage)


@pytest.mark.parametrize("stage", ["score", "embed", "select"])
def test_what_was_made_of_the_same_is_done(stage: RowStage, root: Path) -> None:
    make_all(root)
    found = stage_status(context_of(root), stage)
    assert (found.state, found.why) == ("done", "")
    assert require(context_of(root), stage) == found.seal


def test_a_seal_without_its_artefact_makes_nothing_done(root: Path) -> None:
    make(context_of(root), "score")
    context_of(root).run.scores.unlink()
    assert stage_status(context_of(root), "score").state == "missing"


def test_a_changed_setting_makes_stale_and_says_both_values(root: Path) -> None:
    make(context_of(root), "score")
    edit(root, "max_length: 512", "max_length: 1024")
    found = stage_status(context_of(root), "score")
    assert found.state == "stale"
    assert found.why.endswith("scores.jsonl was made with score.max_length 512, the project now says 1024")
    with pytest.raises(StaleError, match=r"now says 1024\. Run: codetune score"):
        require(context_of(root), "score")


def test_a_setting_that_changes_no_result_makes_nothing_stale(root: Path) -> None:
    make(context_of(root), "score")
    edit(root, "max_length: 512", "max_length: 512, tokens_per_batch: 64")
    assert stage_status(context_of(root), "score").state == "done"


def test_a_setting_of_another_stage_makes_nothing_stale(root: Path) -> None:
    make(context_of(root), "score")
    edit(root, "ratio: 0.5", "ratio: 0.6")
    assert stage_status(context_of(root), "score").state == "done"


def test_a_setting_by_flag_makes_nothing_stale(root: Path) -> None:
    make(context_of(root, "score.max_length=64"), "score")
    found = stage_status(context_of(root), "score")
    assert found.state == "done"
    assert found.manifest is not None
    assert (found.manifest.settings["score.max_length"], found.manifest.overrides) == (64, {"score.max_length": 64})


def test_a_flag_covers_only_its_own_key(root: Path) -> None:
    make(context_of(root, "score.max_length=64"), "score")
    edit(root, "score: {", "score: {prompt: 'Q: {instruction}', ")
    assert "score.prompt" in stage_status(context_of(root), "score").why


def test_a_flag_inside_a_section_covers_only_its_own_key(root: Path) -> None:
    make_all(root)
    make(context_of(root, "train.lora.r=4"), "train")
    assert stage_status(context_of(root), "train").state == "done"
    edit(root, "select:", "train: {lora: {alpha: 32}}\nselect:")
    assert "train.lora.alpha 16, the project now says 32" in stage_status(context_of(root), "train").why


def test_a_whole_section_by_flag_makes_nothing_stale(root: Path) -> None:
    make(context_of(root, "select={ratio: 0.1, strategy: random}"), "select", needs=())
    assert stage_status(context_of(root), "select").state == "done"


def test_a_base_model_by_flag_makes_nothing_stale_where_it_scores(root: Path) -> None:
    made = make(context_of(root, "model.path=other"), "score")
    assert made.overrides == {"score.model": "other"}
    assert stage_status(context_of(root), "score").state == "done"


def test_a_base_model_by_flag_is_none_of_the_scores_where_another_model_scores(root: Path) -> None:
    edit(root, "score: {", "score: {model: small, ")
    assert make(context_of(root, "model.path=other"), "score").overrides == {}
    edit(root, "model: small", "model: medium")
    assert stage_status(context_of(root), "score").state == "stale"


def test_the_scoring_model_is_the_base_model_whether_it_is_named_or_not(root: Path) -> None:
    make(context_of(root), "score")
    edit(root, "score: {", "score: {model: base, ")
    assert stage_status(context_of(root), "score").state == "done"


@pytest.mark.parametrize("stage", ["score", "embed", "select"])
def test_a_changed_data_set_makes_stale_whatever_was_made_of_it(stage: RowStage, root: Path) -> None:
    make_all(root)
    write_data(root, 4)
    assert "the data set data.jsonl has changed since" in stage_status(context_of(root), stage).why


def test_a_data_set_touched_and_unchanged_makes_nothing_stale(root: Path) -> None:
    make(context_of(root), "score")
    os.utime(root / "data.jsonl", (1, 1))
    assert stage_status(context_of(root), "score").state == "done"


@pytest.mark.parametrize("stage", ["score", "embed", "select"])
def test_an_artefact_that_somebody_edited_is_stale(stage: RowStage, root: Path) -> None:
    make_all(root)
    artefact = context_of(root).artefact(stage)
    artefact.write_text("edited", encoding="utf-8")
    assert stage_status(context_of(root), stage).why == f"{artefact} was changed after codetune wrote it"


def test_embeddings_whose_ids_were_edited_are_stale(root: Path) -> None:
    make(context_of(root), "embed")
    context_of(root).run.embedding_ids.write_text("0\n", encoding="ascii")
    assert stage_status(context_of(root), "embed").state == "stale"


def test_new_scores_make_the_selection_stale_and_the_message_tells_the_command(root: Path) -> None:
    make_all(root)
    make(context_of(root), "score", content="other scores")
    with pytest.raises(StaleError, match=r"scores\.jsonl has changed since .*selection\.jsonl.*Run: codetune select"):
        require(context_of(root), "select")


def test_of_a_stale_chain_the_first_stage_is_named(root: Path) -> None:
    make_all(root)
    edit(root, "max_length: 512", "max_length: 1024")
    found = stage_status(context_of(root), "select")
    assert found.state == "stale"
    assert "score.max_length 512" in found.why
    with pytest.raises(StaleError, match=r"Run: codetune score$"):
        require(context_of(root), "select")


def test_scores_that_have_vanished_make_the_selection_stale(root: Path) -> None:
    make_all(root)
    context_of(root).run.scores.unlink()
    with pytest.raises(StaleError, match=r"scores\.jsonl has changed since.*Run: codetune score"):
        require(context_of(root), "select")


def test_the_chain_is_followed_through_all_of_its_links(root: Path) -> None:
    make_all(root)
    make(context_of(root), "train")
    assert stage_status(context_of(root), "train").state == "done"
    edit(root, "name: tiny", "name: tiny\nseed: 7")
    with pytest.raises(StaleError, match=r"Run: codetune embed$"):
        require(context_of(root), "train")


def test_a_flag_of_now_is_no_excuse_for_what_was_made_without_it(root: Path) -> None:
    make(context_of(root), "score")
    assert stage_status(context_of(root, "score.max_length=64"), "score").state == "stale"


@pytest.mark.parametrize(("stage", "name"), [("score", "model"), ("embed", "model"), ("train", "base")])
def test_other_weights_in_the_place_of_a_model_make_stale_what_it_made(stage: RowStage, name: str, root: Path) -> None:
    edit(root, "score: {", "embed: {model: base}\nscore: {")
    weights = write_base(root)
    make_with_model(context_of(root), stage, name)
    assert stage_status(context_of(root), stage).state == "done"
    write_text(weights, "other weights")
    found = stage_status(context_of(root), stage)
    assert found.why == f"the model {root / 'base'} has changed since {context_of(root).artefact(stage)} was made"


def test_the_model_that_made_an_artefact_counts_not_the_one_of_the_project(root: Path) -> None:
    write_base(root)
    (root / "small").mkdir()
    make_with_model(context_of(root, "score.model=base"), "score", "model")
    edit(root, "score: {", "score: {model: small, ")
    assert stage_status(context_of(root), "score").state == "done"


def test_a_model_that_was_taken_away_makes_nothing_stale(root: Path) -> None:
    weights = write_base(root)
    make_with_model(context_of(root), "score", "model")
    weights.parent.rename(root / "elsewhere")
    assert stage_status(context_of(root), "score").state == "done"


def test_the_offline_embedder_is_no_directory(root: Path) -> None:
    (root / "hashing").mkdir()
    edit(root, "score: {", "embed: {model: hashing}\nscore: {")
    context = context_of(root)
    manifest = make(context, "embed")
    write_manifest(
        context.run.embeddings, replace(manifest, inputs={**manifest.inputs, "model": "digest of the projection"})
    )
    assert stage_status(context, "embed").state == "done"


def test_a_selection_that_needs_no_scores_does_not_care_for_them(root: Path) -> None:
    make_all(root)
    make(context_of(root, "select.strategy=random"), "select", needs=())
    context_of(root).run.scores.unlink()
    assert stage_status(context_of(root), "select").state == "done"
    edit(root, "ratio: 0.5", "ratio: 0.6")
    with pytest.raises(StaleError, match=r"Run: codetune select$"):
        require(context_of(root), "select")


def test_a_missing_artefact_is_told_with_the_command_that_makes_it(root: Path) -> None:
    with pytest.raises(StaleError, match=r"scores\.jsonl does not exist.*Run: codetune score"):
        require(context_of(root), "score")


def test_a_recipe_is_made_only_by_a_seal_that_says_the_same(root: Path) -> None:
    manifest = make(context_of(root), "score")
    assert recipe(context_of(root), "score").made(manifest)
    assert not recipe(context_of(root), "score").made(None)
    assert not recipe(context_of(root, "score.max_length=64"), "score").made(manifest)
    write_data(root, 4)
    assert not recipe(context_of(root), "score").made(manifest)


def test_a_recipe_without_the_flag_is_not_made_by_a_seal_with_it(root: Path) -> None:
    manifest = make(context_of(root, "score.max_length=64"), "score")
    assert not recipe(context_of(root), "score").made(manifest)


def test_the_identity_of_unfinished_work_leaves_out_what_may_grow(root: Path) -> None:
    whole = Recipe("score", root, {"score.max_length": 8}, {}, {"dataset": "aa", "model": "bb"})
    assert whole.identity() == {"score.max_length": 8, "dataset (digest)": "aa", "model (digest)": "bb"}
    assert whole.identity(without=["dataset"]) == {"score.max_length": 8, "model (digest)": "bb"}


def test_settings_are_taken_from_the_project() -> None:
    assert settings_of(Project(), "evaluate") == {"evaluate.sandbox": "auto", "evaluate.k": [1]}
    assert settings_of(Project(), "train")["train.lora.alpha"] == 16


def context_of(root: Path, *assignments: str) -> RunContext:
    project = read_project(root / "codetune.yaml", assignments, {})
    run = open_run(project)
    return RunContext(project, run, Digests(run))


def recipe(context: RunContext, stage: RowStage, needs: tuple[RowStage, ...] = ()) -> Recipe:
    inputs = {} if stage == "train" else {"dataset": dataset_digest(context)}
    inputs.update({upstream: require(context, upstream).digest for upstream in needs})
    return Recipe.of(context, stage, context.artefact(stage), inputs)


def make(
    context: RunContext, stage: RowStage, needs: tuple[RowStage, ...] | None = None, content: str = "rows"
) -> Manifest:
    """Makes and seals an artefact whose contents mean nothing."""
    upstream: dict[str, tuple[RowStage, ...]] = {"select": ("score", "embed"), "train": ("select",)}
    making = recipe(context, stage, upstream.get(stage, ()) if needs is None else needs)
    if stage == "train":
        write_text(making.artefact / "config.json", content)
    else:
        write_text(making.artefact, content)
    if stage == "embed":
        write_text(context.run.embedding_ids, "ids")
    manifest = making.sealed(content_digest(context, making.artefact), 3, {}, 0.1, {})
    write_manifest(making.artefact, manifest)
    return manifest


def make_all(root: Path) -> None:
    stages: tuple[RowStage, ...] = ("score", "embed", "select")
    for stage in stages:
        make(context_of(root), stage)
    assert all(manifest_path(context_of(root).artefact(stage)).exists() for stage in stages)


def write_base(root: Path) -> Path:
    """A base model as far as digests know it; its weights."""
    write_text(root / "base" / "model.safetensors", "weights")
    return root / "base" / "model.safetensors"


def make_with_model(context: RunContext, stage: RowStage, name: str) -> None:
    manifest = make(context, stage, needs=())
    inputs = {**manifest.inputs, name: context.digests.tree(context.project.root / "base")}
    write_manifest(context.artefact(stage), replace(manifest, inputs=inputs))


def write_data(root: Path, count: int) -> None:
    write_text(root / "data.jsonl", "".join(ROW.format(number) for number in range(count)))


def edit(root: Path, old: str, new: str) -> None:
    text = (root / "codetune.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    write_text(root / "codetune.yaml", text.replace(old, new))
