"""The table of the stages: their order, and that a stage is added by one module and one line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import get_args

import pytest

from codetune import render, run_status, workflow
from codetune.project.sections import StageName
from codetune.stages import pipeline
from codetune.stages.pipeline import STAGES, stages_between
from codetune.stages.runner import run_stage
from codetune.stages.stage import Stage
from tests.small_world import context_of, make_small_world, rows, write_rows

MODULE = '''
"""lengths: the characters of every answer -> lengths.txt."""

from codetune.stages.dataset import dataset_input
from codetune.stages.stage import Details, Stage, StageOutput
from codetune.store.examples import read_examples
from codetune.store.files import write_lines


def _write(context, recipe, request):
    lengths = [len(example.answer) for example in read_examples(context.run)]
    write_lines(recipe.artefact, map(str, lengths))
    return StageOutput(len(lengths), facts={"longest": max(lengths)})


LENGTHS = Stage(
    "lengths",
    lambda project, request: [dataset_input()],
    lambda run, request: run.directory / "lengths.txt",
    _write,
    documented=("longest",),
    details=lambda result: Details([f"the longest answer has {result.facts['longest']} characters"]),
)
'''


def test_the_table_has_every_stage_of_the_contract_in_its_order() -> None:
    assert tuple(stage.name for stage in STAGES) == get_args(StageName)
    assert [stage.name for stage in stages_between("select", "generate")] == ["select", "train", "generate"]


def test_a_stage_is_added_by_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = load_module(tmp_path / "lengths.py", MODULE)
    monkeypatch.setattr(pipeline, "STAGES", (*STAGES[:3], lengths, *STAGES[3:]))
    for module in (workflow, run_status):
        monkeypatch.setattr(module, "STAGES", pipeline.STAGES)
    project = make_small_world(tmp_path / "world", 6)
    (made,) = list(workflow.run(context_of(project), stages_between("lengths", "lengths")))
    assert (made.state, made.rows, made.reused) == ("done", 6, 0)
    assert len((project.parent / "runs/small/lengths.txt").read_text().splitlines()) == 6
    shown = render.stage(made)
    assert shown.document["longest"] == made.facts["longest"]
    assert f"the longest answer has {made.facts['longest']} characters" in shown.notes
    assert run_stage(context_of(project), lengths).reused == 6  # not done again
    line = next(line for line in run_status.run_status(context_of(project)) if line.stage == "lengths")
    assert (line.state, line.command) == ("done", "codetune lengths")
    write_rows(project.parent / "data.jsonl", rows(7))
    line = next(line for line in run_status.run_status(context_of(project)) if line.stage == "lengths")
    assert line.state == "stale"
    assert "the data set data.jsonl has changed since" in line.detail


def load_module(path: Path, text: str) -> Stage:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    stage = module.LENGTHS
    assert isinstance(stage, Stage)
    return stage
