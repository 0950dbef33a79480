"""`model.dtype: auto`: one format for a run, which seals what was made in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.launch.devices import faster_precision
from codetune.project.file import read_project
from codetune.project.sections import Precision
from codetune.stages.runner import read_context, run_stage
from codetune.stages.score import SCORE
from codetune.stages.stage import RunContext
from codetune.stages.status import stage_status
from codetune.store.manifest import read_manifest
from tests.small_world import context_of, make_small_world

AUTO = {"model.dtype": "auto"}


@pytest.mark.parametrize(
    ("bfloat16_seconds", "chosen"), [(0.004, "bfloat16"), (0.0076, "bfloat16"), (0.009, "float32"), (0.2, "float32")]
)
def test_bfloat16_is_chosen_where_its_products_are_clearly_faster(bfloat16_seconds: float, chosen: Precision) -> None:
    assert faster_precision({"float32": 0.01, "bfloat16": bfloat16_seconds})[0] == chosen


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_small_world(tmp_path, 4)


def found_before(project: Path, precision: Precision) -> RunContext:
    """A run for which this format was found by an earlier command."""
    context = context_of(project)
    context.run.precision.parent.mkdir(exist_ok=True)
    context.run.precision.write_text(f"{precision}\n", encoding="ascii")
    return context_of(project, model__dtype="auto")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_format_that_was_found_seals_the_scores(project: Path, precision: Precision) -> None:
    context = found_before(project, precision)
    run_stage(context, SCORE)
    manifest = read_manifest(context.run.scores)
    assert manifest is not None
    assert manifest.settings["model.dtype"] == precision
    by_name = read_context(read_project(project, [], {"model.dtype": precision}))
    by_auto = read_context(read_project(project, [], AUTO))
    assert stage_status(by_name, SCORE).state == stage_status(by_auto, SCORE).state == "done"
    other = "bfloat16" if precision == "float32" else "float32"
    assert "model.dtype" in stage_status(read_context(read_project(project, [], {"model.dtype": other})), SCORE).why


def test_it_is_found_by_the_first_command_and_said_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = context_of(project, model__dtype="auto")
    assert first.project.model.dtype in ("float32", "bfloat16")
    assert f"model.dtype auto is {first.project.model.dtype} for this run: " in capsys.readouterr().err
    assert context_of(project, model__dtype="auto").project == first.project
    assert capsys.readouterr().err == ""


def test_a_look_at_a_run_finds_no_format(project: Path) -> None:
    assert read_context(read_project(project, [], AUTO)).project.model.dtype == "auto"
    assert not project.with_name("runs").exists()
