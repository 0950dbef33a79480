"""Job scripts: what Slurm reads of them, and what bash makes of their command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from codetune.launch.slurm import SlurmJob, job_script
from codetune.project.sections import Slurm

HOSTILE = 'it\'s "a" $HOME `id` \\ *\n#SBATCH --array=0-999'
SCORE = SlurmJob("score", ["score", "--project", HOSTILE], 1, shards=[1, 3], shard_count=4)


def test_the_command_gets_every_word_as_it_is_in_the_directory_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / HOSTILE
    directory.mkdir()
    words, where = words_of(job_script(SCORE, "tiny", Slurm(), directory), tmp_path)
    assert words == [sys.executable, "-m", "codetune", "score", "--project", HOSTILE, "--shard", "3/4"]
    assert where == directory


def test_keys_that_are_null_leave_their_lines_out(tmp_path: Path) -> None:
    options = options_of(job_script(SlurmJob("select", ["run"], None), "tiny", Slurm(), tmp_path))
    names = {option.partition("=")[0] for option in options}
    assert not names & {"--account", "--partition", "--time", "--gpus-per-node", "--nodes", "--array"}


def test_keys_of_the_project_are_lines_for_slurm_and_its_own_options_stand_before_those_of_codetune(
    tmp_path: Path,
) -> None:
    settings = Slurm(account="lab", partition="gpu", time="2-00:00:00", gpus=4, options=["--mem=64G"])
    options = options_of(job_script(SCORE, "tiny", settings, tmp_path))
    assert options[:3] == ["--mem=64G", "--job-name=codetune-tiny-score", "--output=%x-%A_%a.log"]
    expected = ["--account=lab", "--partition=gpu", "--time=2-00:00:00", "--gpus-per-node=1", "--array=1,3"]
    assert options[-5:] == expected


def test_a_job_of_several_machines_starts_one_command_on_each(tmp_path: Path) -> None:
    text = job_script(SlurmJob("train", ["train"], 8, nodes=2), "tiny", Slurm(), tmp_path)
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"} <= set(options_of(text))
    words, _ = words_of(text, tmp_path, SLURM_CPUS_PER_TASK="6")
    assert words[:4] == ["srun", "--ntasks-per-node=1", "--cpus-per-task=6", sys.executable]
    words, _ = words_of(text, tmp_path)
    assert words[:3] == ["srun", "--ntasks-per-node=1", sys.executable]


@pytest.mark.parametrize(
    ("shards", "expected"), [([0], "0"), ([0, 1, 2], "0-2"), ([1, 3, 4], "1,3-4"), (range(64), "0-63"), ([], "")]
)
def test_the_numbers_of_an_array_are_ranges(shards: Sequence[int], expected: str) -> None:
    assert SlurmJob("score", [], None, shards=shards).array == expected


def options_of(script: str) -> list[str]:
    """The options that Slurm reads: up to the first line that is a command."""
    head = script[: script.index("\ncd ")].splitlines()
    assert head[0] == "#!/bin/bash"
    return [line.removeprefix("#SBATCH ") for line in head[1:]]


def words_of(script: str, tmp_path: Path, **variables: str) -> tuple[list[str], Path]:
    """The words of the command as bash reads them, and the directory that it would run in."""
    shown = script.replace("\nexec ", "\nprintf '%s\\0' \"$PWD\" ", 1)
    told = subprocess.run(
        ["bash", "-c", shown],
        env={"SLURM_ARRAY_TASK_ID": "3", **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    where, *words = told.stdout.split("\0")[:-1]
    return words, Path(where)
