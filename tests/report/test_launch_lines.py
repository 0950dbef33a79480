"""The command lines that a plan shows are ones that start something."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from codetune.cli import app
from codetune.project.sections import Launch, Project
from codetune.report.launch_lines import launch_lines


@pytest.mark.parametrize("nodes", [1, 2])
def test_every_line_holds_a_command_with_flags_that_exist(nodes: int) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = launch_lines(Project(launch=Launch(nodes=nodes)), 8)
    for line in lines.values():
        name, *words = shlex.split(re.split(r"\bcodetune ", line)[1])
        known = {flag for parameter in commands[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
    assert all("-m codetune" in line for line in lines.values() if line.startswith("torchrun"))


def test_processes_and_machines_are_those_of_the_project() -> None:
    lines = launch_lines(Project(launch=Launch(nodes=4)), 8)
    assert lines["train, by torchrun on each machine"].startswith("torchrun --nproc-per-node 8 --nnodes 4 ")
    assert lines["train, by srun"] == "srun --nodes 4 --ntasks-per-node 1 --gpus-per-node 8 codetune train"
    assert "everything" not in lines  # `run` would need the other machines for one of its stages only
