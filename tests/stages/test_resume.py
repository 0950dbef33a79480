"""A training that is not finished: continued, refused, begun anew; and the finished one beside it stays whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from codetune import __version__
from codetune.errors import StaleError
from codetune.run_status import run_status
from codetune.stages.status import require, stage_status
from codetune.stages.train import TRAIN
from codetune.store.manifest import read_manifest
from codetune.training.checkpoint import MANIFEST
from tests import pipeline
from tests.small_world import context_of, make_small_world, run_codetune

RANDOM = {"select__strategy": "random"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    world = make_small_world(tmp_path, 30)
    pipeline.select(context_of(world, **RANDOM))
    return world


def begun(run: Path, **recipe: object) -> Path:
    """A training in `train/` that was killed after its first checkpoint."""
    train = run / "train"
    (train / "checkpoint-1").mkdir(parents=True)
    (train / "checkpoint-1" / MANIFEST).touch()
    (train / "recipe.json").write_text(json.dumps(recipe))
    return train


def test_what_differs_is_named_with_the_commands_that_continue_or_begin_anew(project: Path) -> None:
    context = context_of(project, **RANDOM)
    pipeline.train(context)
    recipe = json.loads((context.run.train / "recipe.json").read_text())
    (context.run.directory / "model.seal").unlink()
    (context.run.train / "checkpoint-1").mkdir()
    (context.run.train / "checkpoint-1" / MANIFEST).touch()
    (context.run.train / "recipe.json").write_text(
        json.dumps({**recipe, "train.learning_rate": 0.5, "train.epochs": 7})
    )
    with pytest.raises(StaleError) as told:
        pipeline.train(context)
    assert "train.epochs 7 then, 1 now; train.learning_rate 0.5 then, 0.001 now" in str(told.value)
    assert "codetune train --set 'train.epochs=7' --set 'train.learning_rate=0.5'. " in str(told.value)
    assert "holds an unfinished training (method full, checkpoint of step 1, written on " in str(told.value)
    assert str(told.value).endswith("To discard it, add --replace to this command")
    line = next(line for line in run_status(context) if line.stage == "train")
    assert (line.state, line.detail) == (
        "partial",
        "step 3 of 3, checkpoint of step 1, made with other settings: train.epochs 7 then, 1 now; "
        "train.learning_rate 0.5 then, 0.001 now",
    )
    assert line.command == "codetune train --set 'train.epochs=7' --set 'train.learning_rate=0.5'"
    (context.run.train / "recipe.json").write_text(json.dumps({**recipe, "select (digest)": "another"}))
    with pytest.raises(
        StaleError, match=r"select \(digest\) \"another\" then.* now\. It cannot be continued, unless the content"
    ):
        pipeline.train(context)


def test_what_changes_nothing_that_is_learned_stands_in_nobodys_way(project: Path) -> None:
    context = context_of(project, **RANDOM)
    pipeline.train(context)
    (context.run.directory / "model.seal").unlink()
    (context.run.train / "checkpoint-1").mkdir()
    free = {"train__per_device_batch_size": 1, "train__gradient_checkpointing": True, "train__save_steps": 5}
    other = context_of(project, **RANDOM, **free, train__global_batch_size=3)
    line = next(line for line in run_status(other) if line.stage == "train")
    assert (line.state, line.detail) == ("partial", "step 3 of 3, no checkpoint yet")
    assert pipeline.train(other).rows == 12


def test_a_part_of_a_checkpoint_is_no_unfinished_training(project: Path) -> None:
    context = context_of(project, **RANDOM)
    (begun(context.run.directory, seed=1) / "checkpoint-1" / MANIFEST).unlink()
    assert pipeline.train(context).rows == 12


def test_checkpoints_of_another_recipe_go_with_replace_which_says_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(project, **RANDOM)
    train = begun(context.run.directory, seed=1)
    assert pipeline.train(context, replacing=True).rows == 12
    told = " ".join(capsys.readouterr().err.split())
    assert f"{train} held an unfinished training (method None, checkpoint of step 1, written on " in told
    assert not (train / "checkpoint-1").exists()


def test_an_unfinished_training_of_an_older_version_is_refused_with_that_version(project: Path) -> None:
    context = context_of(project, **RANDOM)
    pipeline.train(context)
    recipe = json.loads((context.run.train / "recipe.json").read_text())
    assert recipe.pop("codetune") == __version__
    (context.run.directory / "model.seal").unlink()
    (context.run.train / "checkpoint-1").mkdir()
    (context.run.train / "checkpoint-1" / MANIFEST).touch()
    (context.run.train / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(StaleError, match=r"of codetune 0\.1\.0; version .* does not continue it.*add --replace"):
        pipeline.train(context)
    assert (context.run.train / "checkpoint-1").exists()
    assert pipeline.train(context, replacing=True).rows == 12
    assert not (context.run.train / "checkpoint-1").exists()


def test_a_finished_model_is_replaced_only_where_the_command_says_so_and_the_error_says_what_would_be_lost(
    project: Path,
) -> None:
    first = pipeline.train(context_of(project, **RANDOM))
    evaluation = project.parent / "runs/small/evaluation/tasks/tuned.json"
    evaluation.parent.mkdir(parents=True)
    evaluation.write_text("{}")
    kept = digests(first.artefact)
    other = context_of(project, **RANDOM, train__method="lora")
    with pytest.raises(StaleError) as told:
        pipeline.train(other)
    assert re.search(
        r"model is finished and would be replaced: .*train\.method 'full', the flag now says 'lora'\. "
        r"What would be lost: a model of 3 steps \(method full\), made on \d+ \w+ \d{4} by \d+ s of work, and its "
        r"evaluation on tasks\. "
        r".*--set name=NEW.*add --replace to this command$",
        str(told.value),
    )
    assert digests(first.artefact) == kept
    assert pipeline.train(context_of(project, **RANDOM), replacing=True).reused == 12  # what is done is not done again
    assert pipeline.train(other, replacing=True).reused == 0
    assert (first.artefact / "adapter_config.json").exists()


def test_a_finished_model_is_kept_where_its_selection_or_its_own_files_have_changed(project: Path) -> None:
    first = pipeline.train(context_of(project, **RANDOM))
    flags = {**RANDOM, "select__ratio": 0.2}
    pipeline.select(context_of(project, **flags))
    with pytest.raises(StaleError, match=r"selection\.jsonl is not what it was made from\. What would be lost"):
        pipeline.train(context_of(project, **flags))
    pipeline.select(context_of(project, **RANDOM))
    (first.artefact / "config.json").write_text((first.artefact / "config.json").read_text() + "\n")
    with pytest.raises(StaleError, match=r"model was changed after codetune wrote it\. What would be lost"):
        pipeline.train(context_of(project, **RANDOM))
    line = next(line for line in run_status(context_of(project, **RANDOM)) if line.stage == "train")
    assert (line.state, line.command) == ("stale", "codetune train --replace")
    with pytest.raises(StaleError, match=r"Run: codetune train --replace$"):
        require(context_of(project, **RANDOM), TRAIN)


def test_a_model_without_a_manifest_that_another_training_made_is_kept(project: Path) -> None:
    context = context_of(project, **RANDOM)
    (context.run.model / "weights").mkdir(parents=True)
    with pytest.raises(StaleError, match=r"model holds a model that another training made.*add --replace"):
        pipeline.train(context)
    assert (context.run.model / "weights").exists()


def digests(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_record_of_an_unfinished_training_is_told_with_its_file(content: str, project: Path) -> None:
    context = context_of(project, **RANDOM)
    (begun(context.run.directory, seed=1) / "recipe.json").write_text(content)
    with pytest.raises(StaleError, match=r"recipe\.json is damaged.*Move it away: mv .*train .*train\.old$"):
        pipeline.train(context)


def test_the_flag_is_known_to_the_command(project: Path) -> None:
    begun(context_of(project, **RANDOM).run.directory, seed=1)
    settings = ("--set", "select.strategy=random")
    refused = run_codetune("train", *settings, cwd=project.parent)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "add --replace to this command" in refused.stderr
    assert run_codetune("train", "--replace", "--help", cwd=project.parent).returncode == 0


def test_a_training_that_replaces_another_leaves_it_whole_until_it_is_done(project: Path) -> None:
    context = context_of(project, **RANDOM)
    pipeline.train(context)
    before = {path: path.read_bytes() for path in context.run.train.rglob("*") if path.is_file()}
    flags = {**RANDOM, "train__learning_rate": 2e-3, "train__save_steps": 1}
    other = context_of(project, **flags, train__max_length=2, train__too_long="drop")
    with pytest.raises(Exception, match="No row is left"):
        pipeline.train(other, replacing=True)
    # Killed in the middle: a checkpoint of the new one stands beside the old one, which is as it was.
    next_train = context.run.directory / "train.next"
    assert next_train.is_dir()
    assert {path: path.read_bytes() for path in context.run.train.rglob("*") if path.is_file()} == before
    assert stage_status(context_of(project, **RANDOM), TRAIN).state == "done"
    assert pipeline.train(context_of(project, **RANDOM)).reused == 12
    result = pipeline.train(context_of(project, **flags), replacing=True)
    assert result.reused == 0
    assert not next_train.exists()
    assert len(list(context.run.train.glob("checkpoint-*"))) == 2
    recipe = json.loads((context.run.train / "recipe.json").read_text())
    assert recipe["train.learning_rate"] == 2e-3


def test_killed_between_the_model_and_its_seal_a_training_ends_from_its_last_checkpoint(project: Path) -> None:
    context = context_of(project, **RANDOM)
    pipeline.train(context)
    flags = {**RANDOM, "train__learning_rate": 2e-3, "train__save_steps": 1}
    old_seal = (context.run.directory / "model.seal").read_bytes()
    pipeline.train(context_of(project, **flags), replacing=True)
    kept = {path.name: path.stat().st_mtime_ns for path in context.run.train.glob("checkpoint-*")}
    (context.run.directory / "model.seal").write_bytes(old_seal)
    again = pipeline.train(context_of(project, **flags), replacing=True)
    assert again.rows == 12
    assert {path.name: path.stat().st_mtime_ns for path in context.run.train.glob("checkpoint-*")} == kept
    manifest = read_manifest(again.artefact)
    assert manifest is not None
    assert manifest.settings["train.learning_rate"] == 2e-3
