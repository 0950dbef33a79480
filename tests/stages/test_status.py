"""How an artefact stands: done, stale and why, partial, missing; and what it is about to be made of."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from codetune.errors import StaleError
from codetune.project.file import read_project
from codetune.project.sections import Project
from codetune.stages.dataset import CONTENT, ensure_examples
from codetune.stages.embed import EMBED
from codetune.stages.evaluate import EVALUATE
from codetune.stages.pipeline import STAGES
from codetune.stages.runner import input_names, stage_settings
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import Recipe, RunContext, Stage, StageRequest
from codetune.stages.status import require, stage_status
from codetune.stages.train import TRAIN
from codetune.store.digests import Digests
from codetune.store.files import write_text
from codetune.store.manifest import Manifest, manifest_path, write_manifest
from codetune.store.run_directory import open_run

ROW = '{{"instruction": "Add {0}.", "output": "x + {0}"}}\n'
PROJECT = """\
name: tiny
dataset: {path: data.jsonl, instruction: instruction, response: output}
model: {path: base}
embed: {model: base}
score: {max_length: 512}
select: {ratio: 0.5}
"""
ROW_STAGES = [SCORE, EMBED]
EVERY_STAGE = [SCORE, EMBED, SELECT, TRAIN]


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Stage) else None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_text(tmp_path / "codetune.yaml", PROJECT)
    write_text(tmp_path / "base" / "model.safetensors", "weights")
    write_data(tmp_path, 3)
    return tmp_path


@pytest.mark.parametrize("stage", EVERY_STAGE, ids=name_of)
def test_an_artefact_that_was_never_made_is_missing(stage: Stage, root: Path) -> None:
    assert stage_status(context_of(root), stage).state == "missing"


@pytest.mark.parametrize("stage", [SCORE, EMBED, TRAIN], ids=name_of)
def test_an_artefact_that_was_begun_is_partial(stage: Stage, root: Path) -> None:
    context = context_of(root)
    (context.run.train if stage is TRAIN else context.run.parts(artefact(context, stage))).mkdir()
    assert stage_status(context, stage).state == "partial"
    with pytest.raises(StaleError, match=f"is not finished.*Run: codetune {stage.name}"):
        require(context, stage)


@pytest.mark.parametrize("stage", EVERY_STAGE, ids=name_of)
def test_an_artefact_of_the_same_settings_and_inputs_is_done(stage: Stage, root: Path) -> None:
    make_all(root)
    found = stage_status(context_of(root), stage)
    assert (found.state, found.why) == ("done", "")
    assert require(context_of(root), stage) == found.manifest


def test_a_manifest_without_its_artefact_makes_nothing_done(root: Path) -> None:
    make(context_of(root), SCORE)
    context_of(root).run.scores.unlink()
    assert stage_status(context_of(root), SCORE).state == "missing"


def test_a_changed_setting_makes_an_artefact_stale_and_both_values_are_named(root: Path) -> None:
    make(context_of(root), SCORE)
    edit(root, "max_length: 512", "max_length: 1024")
    found = stage_status(context_of(root), SCORE)
    assert found.state == "stale"
    assert found.why.endswith("scores.jsonl was made with score.max_length 512, the project now says 1024")
    with pytest.raises(StaleError, match=r"now says 1024\. Run: codetune score"):
        require(context_of(root), SCORE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("max_length: 512", "max_length: 512, tokens_per_batch: 64"), ("ratio: 0.5", "ratio: 0.6")],
    ids=["a setting that changes no result", "a setting of another stage"],
)
def test_a_setting_that_does_not_seal_makes_nothing_stale(old: str, new: str, root: Path) -> None:
    make(context_of(root), SCORE)
    edit(root, old, new)
    assert stage_status(context_of(root), SCORE).state == "done"


def test_a_setting_by_flag_makes_an_artefact_stale_without_the_flag_and_its_origin_is_named(root: Path) -> None:
    made = make(context_of(root, "score.max_length=64"), SCORE)
    assert (made.settings["score.max_length"], made.overrides) == (64, {"score.max_length": 64})
    found = stage_status(context_of(root), SCORE)
    assert found.state == "stale"
    assert f"was made by flag on {made.day} with score.max_length 64, the project now says 512" in found.why
    assert stage_status(context_of(root, "score.max_length=64"), SCORE).state == "done"
    flagged = stage_status(context_of(root, "score.max_length=32"), SCORE)
    assert flagged.why.endswith("with score.max_length 64, the flag now says 32")


def test_a_later_stage_takes_an_artefact_that_was_made_by_flag_and_says_so(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(context_of(root, "score.max_length=64"), SCORE)
    assert require(context_of(root, "score.max_length=64"), SCORE) == made
    assert not capsys.readouterr().err
    assert require(context_of(root), SCORE) == made
    assert f"is used as it was made by flag on {made.day}: score.max_length=64" in " ".join(
        capsys.readouterr().err.split()
    )
    edit(root, "score: {", "score: {prompt: 'Q: {instruction}', ")
    with pytest.raises(StaleError, match=r"score\.prompt"):  # a flag covers its own key only
        require(context_of(root), SCORE)


def test_a_flag_inside_a_section_covers_only_its_own_key(root: Path) -> None:
    make_all(root)
    made = make(context_of(root, "train.lora.r=4"), TRAIN)
    assert require(context_of(root), TRAIN) == made
    edit(root, "select:", "train: {lora: {alpha: 32}}\nselect:")
    with pytest.raises(StaleError, match=r"train\.lora\.alpha 16, the project now says 32"):
        require(context_of(root), TRAIN)


def test_a_whole_section_by_flag_covers_all_of_its_keys(root: Path) -> None:
    made = make(context_of(root, "select={ratio: 0.1, strategy: random}"), SELECT)
    assert require(context_of(root), SELECT) == made


@pytest.mark.parametrize("stage", [SCORE, EMBED, SELECT], ids=name_of)
def test_a_changed_data_set_makes_everything_stale_that_was_made_of_it(stage: Stage, root: Path) -> None:
    make_all(root)
    write_data(root, 4)
    assert "the data set data.jsonl has changed since" in stage_status(context_of(root), stage).why


def test_rows_without_a_seal_are_no_change_of_the_data_set(root: Path) -> None:
    make(context := context_of(root), SCORE)
    manifest_path(context.run.examples).unlink()
    assert stage_status(context, SCORE).why == (
        f"{context.run.examples} is missing or has no seal, so the data set is to be read again"
    )


def test_a_data_set_that_was_touched_makes_nothing_stale(root: Path) -> None:
    make(context_of(root), SCORE)
    os.utime(root / "data.jsonl", (1, 1))
    assert stage_status(context_of(root), SCORE).state == "done"


@pytest.mark.parametrize("spelling", ["absolute", "copy"])
@pytest.mark.parametrize("stage", EVERY_STAGE, ids=name_of)
def test_another_spelling_or_a_copy_of_data_set_and_model_makes_nothing_stale(
    stage: Stage, spelling: str, root: Path
) -> None:
    make_all(root)
    data, base = root / "data.jsonl", root / "base"
    if spelling == "copy":
        data, base = Path(shutil.copy(data, root / "copy.jsonl")), Path(shutil.copytree(base, root / "copied"))
    edit(root, "path: data.jsonl", f"path: {data}")
    edit(root, "path: base", f"path: {base}")
    edit(root, "embed: {model: base}", f"embed: {{model: {base}}}")
    assert stage_status(context_of(root), stage).state == "done"
    assert require(context_of(root), stage)


def test_other_columns_of_the_same_file_make_stale(root: Path) -> None:
    make(context_of(root), SCORE)
    edit(root, "response: output", "response: answer")
    assert "dataset.response 'output', the project now says 'answer'" in stage_status(context_of(root), SCORE).why


@pytest.mark.parametrize("stage", [SCORE, EMBED, SELECT], ids=name_of)
def test_an_artefact_that_was_edited_by_hand_is_stale(stage: Stage, root: Path) -> None:
    make_all(root)
    edited = artefact(context_of(root), stage)
    edited.write_text("edited", encoding="utf-8")
    assert stage_status(context_of(root), stage).why == f"{edited} was changed after codetune wrote it"


def test_embeddings_whose_ids_were_edited_are_stale(root: Path) -> None:
    make(context_of(root), EMBED)
    context_of(root).run.embedding_ids.write_text("0\n", encoding="ascii")
    assert stage_status(context_of(root), EMBED).state == "stale"


def test_new_scores_make_the_selection_stale_and_the_message_names_the_command(root: Path) -> None:
    make_all(root)
    make(context_of(root), SCORE, content="other scores")
    with pytest.raises(StaleError, match=r"scores\.jsonl has changed since .*selection\.jsonl.*Run: codetune select"):
        require(context_of(root), SELECT)


def test_of_a_stale_chain_the_first_stage_is_named(root: Path) -> None:
    make_all(root)
    edit(root, "max_length: 512", "max_length: 1024")
    found = stage_status(context_of(root), SELECT)
    assert found.state == "stale"
    assert "score.max_length 512" in found.why
    with pytest.raises(StaleError, match=r"Run: codetune score$"):
        require(context_of(root), SELECT)


def test_scores_that_were_removed_make_the_selection_stale(root: Path) -> None:
    make_all(root)
    context_of(root).run.scores.unlink()
    with pytest.raises(StaleError, match=r"scores\.jsonl, of which .* was made, does not exist.*Run: codetune score"):
        require(context_of(root), SELECT)


def test_the_chain_is_followed_through_all_of_its_links(root: Path) -> None:
    make_all(root)
    assert stage_status(context_of(root), TRAIN).state == "done"
    edit(root, "name: tiny", "name: tiny\nseed: 7")
    with pytest.raises(StaleError, match=r"Run: codetune embed$"):
        require(context_of(root), SELECT)


def test_a_flag_of_now_does_not_excuse_an_artefact_that_was_made_without_it(root: Path) -> None:
    make(context_of(root), SCORE)
    flagged = context_of(root, "score.max_length=64")
    assert stage_status(flagged, SCORE).state == "stale"
    with pytest.raises(StaleError):
        require(flagged, SCORE)


@pytest.mark.parametrize("stage", [SCORE, EMBED, TRAIN], ids=name_of)
def test_other_weights_at_the_same_path_make_stale_what_the_model_made(stage: Stage, root: Path) -> None:
    make_all(root)
    write_text(root / "base" / "model.safetensors", "other weights")
    changed = f"the model {root / 'base'} has changed since"
    assert changed in stage_status(context_of(root), stage).why


def test_a_model_of_another_name_makes_stale_where_its_content_is_not_known(root: Path) -> None:
    make(context_of(root), SCORE)
    edit(root, "model: {path: base}", "model: {path: some/hub-model}")
    assert "was made with model.path 'base', the project now says 'some/hub-model'" in (
        stage_status(context_of(root), SCORE).why
    )


def test_a_model_that_was_moved_away_makes_nothing_stale(root: Path) -> None:
    make(context_of(root), SCORE)
    (root / "base").rename(root / "elsewhere")
    assert stage_status(context_of(root), SCORE).state == "done"


def test_the_scoring_model_may_be_the_base_model_under_its_own_key(root: Path) -> None:
    make(context_of(root), SCORE)
    edit(root, "score: {", "score: {model: base, ")
    assert stage_status(context_of(root), SCORE).state == "done"


def test_the_offline_encoder_is_not_a_directory(root: Path) -> None:
    (root / "hashing").mkdir()
    edit(root, "embed: {model: base}", "embed: {model: hashing}")
    context = context_of(root)
    made = make(context, EMBED, {"model": "digest of the projection"})
    assert stage_status(context, EMBED).state == "done"
    edit(root, "embed: {model: hashing}", "embed: {model: base}")
    assert "made with embed.model 'hashing', the project now says 'base'" in stage_status(context_of(root), EMBED).why
    assert made.names["embed.model"] == "hashing"


def test_a_selection_that_needs_no_scores_does_not_depend_on_them(root: Path) -> None:
    make_all(root)
    edit(root, "ratio: 0.5", "ratio: 0.5, strategy: random")
    make(context_of(root), SELECT)
    context_of(root).run.scores.unlink()
    assert stage_status(context_of(root), SELECT).state == "done"
    edit(root, "ratio: 0.5", "ratio: 0.6")
    with pytest.raises(StaleError, match=r"Run: codetune select$"):
        require(context_of(root), SELECT)


def test_a_missing_artefact_is_named_with_the_command_that_makes_it(root: Path) -> None:
    with pytest.raises(StaleError, match=r"scores\.jsonl does not exist.*Run: codetune score"):
        require(context_of(root), SCORE)


def test_a_recipe_is_made_only_by_a_manifest_with_the_same_settings_and_inputs(root: Path) -> None:
    made = make(context_of(root), SCORE)
    assert recipe(context_of(root), SCORE).made(made)
    assert not recipe(context_of(root), SCORE).made(None)
    assert not recipe(context_of(root, "score.max_length=64"), SCORE).made(made)
    assert not recipe(context_of(root), SCORE).made(make(context_of(root, "score.max_length=64"), SCORE))
    write_data(root, 4)
    assert not recipe(context_of(root), SCORE).made(made)


def test_the_identity_of_unfinished_work_leaves_out_what_may_grow(root: Path) -> None:
    whole = Recipe("score", root, {"score.max_length": 8}, {"dataset": "aa", "model": "bb"}, {}, {})
    assert whole.identity() == {"score.max_length": 8, "dataset (digest)": "aa", "model (digest)": "bb"}
    assert whole.identity(without=["dataset"]) == {"score.max_length": 8, "model (digest)": "bb"}


def test_a_recipe_reaches_another_process_unchanged(root: Path) -> None:
    whole = Recipe("score", root, {"score.max_length": 8}, {"model": "bb"}, {"model.path": "b"}, {}, {"model": root})
    assert Recipe.read(whole.document()) == whole


def test_the_settings_of_a_stage_are_taken_from_the_project(tmp_path: Path) -> None:
    write_text(tmp_path / "codetune.yaml", PROJECT)
    context = replace(context_of(tmp_path), project=Project())
    settings = {stage.name: stage_settings(context, stage, StageRequest()) for stage in STAGES}
    assert settings["evaluate"] == {"evaluate.sandbox": "auto", "evaluate.k": [1], "rules": EVALUATE.rules}
    assert settings["train"]["train.lora.alpha"] == 16


def context_of(root: Path, *assignments: str) -> RunContext:
    project = read_project(root / "codetune.yaml", assignments, {})
    run = open_run(project)
    return RunContext(project, run, Digests(run))


def artefact(context: RunContext, stage: Stage) -> Path:
    return stage.artefact(context.run, StageRequest())


def recipe(context: RunContext, stage: Stage, digests: dict[str, str] | None = None) -> Recipe:
    """As the runner makes it; `digests` stand for inputs that cannot be resolved here."""
    inputs, found = stage.inputs(context.project, StageRequest()), {}
    for part in inputs:
        if part.name in (digests or {}):
            found[part.name] = (digests or {})[part.name]
        elif part.name == "dataset":
            found[part.name] = ensure_examples(context).facts[CONTENT]
        elif part.upstream is not None:
            found[part.name] = require(context, part.upstream).digest
        else:
            found[part.name] = context.digests.tree(context.project.root / "base")
    settings, names = stage_settings(context, stage, StageRequest()), input_names(context.project, inputs)
    said = {key: value for key, value in context.project.overrides.items() if key in {**settings, **names}}
    return Recipe(stage.name, artefact(context, stage), settings, found, names, said)


def make(context: RunContext, stage: Stage, digests: dict[str, str] | None = None, content: str = "rows") -> Manifest:
    """Makes and seals an artefact whose content means nothing."""
    made = recipe(context, stage, digests)
    write_text(made.artefact / "config.json" if stage is TRAIN else made.artefact, content)
    if stage is EMBED:
        write_text(context.run.embedding_ids, "ids")
    digest = context.digests.artefact(made.artefact)
    manifest = Manifest(
        stage.name,
        digest,
        3,
        {},
        dict(made.inputs),
        dict(made.settings),
        dict(made.overrides),
        0.1,
        {},
        dict(made.names),
    )
    write_manifest(made.artefact, manifest)
    return manifest


def make_all(root: Path) -> None:
    for stage in EVERY_STAGE:
        make(context_of(root), stage)
    assert all(manifest_path(artefact(context_of(root), stage)).exists() for stage in EVERY_STAGE)


def write_data(root: Path, count: int) -> None:
    write_text(root / "data.jsonl", "".join(ROW.format(number) for number in range(count)))


def edit(root: Path, old: str, new: str) -> None:
    text = (root / "codetune.yaml").read_text(encoding="utf-8")
    assert old in text
    write_text(root / "codetune.yaml", text.replace(old, new))
