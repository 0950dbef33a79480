"""`codetune slurm` with an `sbatch` and a `squeue` that are small scripts on PATH; and once with a real Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from codetune.errors import BusyError, CodetuneError, InputError, StaleError, UsageError
from codetune.run_status import run_status
from codetune.slurm_jobs import remaining_jobs, slurm_result, write_jobs
from codetune.stages.stage import RunContext
from codetune.store.files import write_text
from codetune.store.locks import locked
from codetune.store.manifest import Manifest, write_manifest
from tests import pipeline
from tests.one_machine_slurm import await_jobs, one_machine_slurm
from tests.small_world import PROJECT, context_of, make_small_world

__all__ = ["one_machine_slurm"]

# Writes down its arguments and gives the numbers 101, 102, ...; refuses a script of the name in the file `refused`, and
# stands for a Ctrl-C at one of the name in the file `interrupted`.
SBATCH = """\
#!/bin/sh
for word; do script=$word; done
if [ -f "$(dirname "$0")/interrupted" ] && [ "$script" = "$(cat "$(dirname "$0")/interrupted")" ]; then
    kill -INT $PPID; exit 1
fi
if [ -f "$(dirname "$0")/refused" ] && [ "$script" = "$(cat "$(dirname "$0")/refused")" ]; then
    echo "sbatch: error: invalid partition specified" >&2; exit 1
fi
echo "$*" >> "$(dirname "$0")/asked"
echo "$((100 + $(wc -l < "$(dirname "$0")/asked")));one"
"""
SQUEUE = '#!/bin/sh\ncat "$(dirname "$0")/queue"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the scripts."""
    directory = tmp_path / "slurm-commands"
    directory.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE}.items():
        (directory / name).write_text(text, encoding="utf-8")
        (directory / name).chmod(0o755)
    (directory / "queue").touch()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_world(tmp_path_factory.mktemp("world"), 20).parent


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Callable[..., RunContext]:
    shutil.copytree(small_world, tmp_path / "world")
    return lambda **flags: context_of(tmp_path / "world" / "codetune.yaml", **{"embed__batch_size": 2, **flags})


def submit(context: RunContext) -> list[tuple[str, int | None]]:
    return [(one.job.name, one.number) for one in write_jobs(context, [], Path.cwd(), submit=True)]


def asked(slurm: Path) -> list[str]:
    return (slurm / "asked").read_text(encoding="utf-8").splitlines()


def test_the_jobs_of_a_new_project_are_arrays_then_one_after_the_other(
    slurm: Path, world: Callable[..., RunContext]
) -> None:
    context = world()
    assert submit(context) == [("score", 101), ("embed", 102), ("select", 103), ("train", 104), ("evaluate", 105)]
    assert asked(slurm) == [
        "--parsable score.sh",
        "--parsable embed.sh",
        "--parsable --dependency=afterany:101:102 select.sh",
        "--parsable --dependency=afterok:103 train.sh",
        "--parsable --dependency=afterok:104 evaluate.sh",
    ]
    assert "#SBATCH --array=0-7\n" in (context.run.slurm / "score.sh").read_text(encoding="utf-8")


def test_only_the_shards_that_are_missing_are_submitted_again(slurm: Path, world: Callable[..., RunContext]) -> None:
    context = world(slurm__shards=4)
    pipeline.embed(context, (0, 4))
    pipeline.embed(context, (2, 4))
    (embed,) = [job for job in remaining_jobs(context, []) if job.name == "embed"]
    assert embed.array == "1,3"


def test_all_shards_of_another_number_are_submitted_and_go_on_with_the_rows_that_are_there(
    slurm: Path, world: Callable[..., RunContext]
) -> None:
    context = world(slurm__shards=3)
    before = pipeline.embed(context, (0, 4)).rows
    (embed,) = [job for job in remaining_jobs(context, []) if job.name == "embed"]
    assert embed.array == "0-2"
    done = [pipeline.embed(context, (index, 3)) for index in (2, 0, 1)]
    assert (done[0].reused, [result.state for result in done]) == (before, ["partial", "partial", "done"])


def test_what_is_done_is_not_submitted_and_a_script_of_it_is_removed(
    slurm: Path, world: Callable[..., RunContext]
) -> None:
    context = world(select__strategy="random")
    submit(context)
    pipeline.select(context)
    assert [name for name, _ in submit(context)] == ["train", "evaluate"]
    assert sorted(path.name for path in context.run.slurm.glob("*.sh")) == ["evaluate.sh", "train.sh"]
    assert asked(slurm)[-2:] == ["--parsable train.sh", "--parsable --dependency=afterok:104 evaluate.sh"]


def test_shards_that_are_done_but_not_merged_leave_the_job_that_merges(
    slurm: Path, world: Callable[..., RunContext]
) -> None:
    context = world(slurm__shards=1, select__strategy="kcenter", select__ratio=0.5)
    parts = context.run.parts(context.run.embeddings)
    pipeline.embed(context, (0, 2))
    (parts / "0-of-1.done").write_text("20\n", encoding="ascii")
    with locked(context.run, "embed", (0, 1)):
        pass
    first = next(remaining_jobs(context, []))
    assert (first.name, first.after) == ("select", [])


def test_while_jobs_of_the_run_are_in_the_queue_nothing_is_submitted(
    slurm: Path, world: Callable[..., RunContext]
) -> None:
    context = world()
    submit(context)
    (slurm / "queue").write_text("7\n104\n104\n", encoding="utf-8")
    with pytest.raises(BusyError, match=r"in the queue still: 104\. Nothing was submitted.*scancel 104"):
        submit(context)
    assert len(asked(slurm)) == 5
    assert write_jobs(context, [], Path.cwd(), submit=False)


def test_while_a_stage_is_running_nothing_is_submitted(slurm: Path, world: Callable[..., RunContext]) -> None:
    context = world()
    with locked(context.run, "embed", (2, 4)), pytest.raises(BusyError, match="embed is running"):
        submit(context)


def test_a_job_that_is_refused_names_those_before_it(slurm: Path, world: Callable[..., RunContext]) -> None:
    (slurm / "refused").write_text("select.sh", encoding="utf-8")
    with pytest.raises(CodetuneError, match=r"invalid partition specified.*scancel 101 102"):
        submit(world())


def test_an_interrupt_names_the_jobs_that_are_submitted_already(slurm: Path, world: Callable[..., RunContext]) -> None:
    (slurm / "interrupted").write_text("select.sh", encoding="utf-8")
    with pytest.raises(
        KeyboardInterrupt, match=r"^Interrupted\. The jobs before it are in the queue.*scancel 101 102$"
    ):
        submit(world())


def test_without_sbatch_the_scripts_are_written_and_the_error_says_where_to_go(
    world: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = world()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="no sbatch on this machine"):
        submit(context)
    assert (context.run.slurm / "train.sh").exists()


def test_shards_of_other_settings_are_an_error_before_a_job_waits_for_hours(world: Callable[..., RunContext]) -> None:
    pipeline.embed(world(), (0, 4))
    with pytest.raises(StaleError, match=r"made with other settings.*mv "):
        list(remaining_jobs(world(seed=7), []))


def test_a_directory_in_whose_path_slurm_replaces_signs_is_an_error(world: Callable[..., RunContext]) -> None:
    with pytest.raises(InputError, match=r"holds %, which Slurm replaces.*Set output_dir"):
        write_jobs(world(output_dir="at 40%"), [], Path.cwd(), submit=False)


def test_only_training_works_on_several_machines(world: Callable[..., RunContext]) -> None:
    jobs = {job.name: job for job in remaining_jobs(world(launch__nodes=2, slurm__gpus=8), ["-p", "here"])}
    assert {name: (job.nodes, job.gpus) for name, job in jobs.items()} == {
        "score": (1, 1),
        "embed": (1, 1),
        "select": (1, 8),
        "train": (2, 8),
        "evaluate": (1, 8),
    }
    assert jobs["train"].arguments == ["train", "-p", "here"]
    assert jobs["evaluate"].arguments[-2:] == ["--set", "launch.nodes=1"]


def test_the_result_names_jobs_shards_and_numbers(slurm: Path, world: Callable[..., RunContext]) -> None:
    context = world(slurm__shards=2)
    result = slurm_result(write_jobs(context, [], Path.cwd(), submit=True), context.run.slurm)
    document = json.loads(json.dumps(result.document))
    assert [job["job"] for job in document["jobs"]] == [101, 102, 103, 104, 105]
    assert document["jobs"][2]["after"] == ["score", "embed"]
    assert result.rows[0] == ("score", "0-1", "at once", "101", "score.sh")
    assert slurm_result([], context.run.slurm).title == "nothing is left to do"


def test_a_finished_model_of_other_settings_is_named_before_anything_is_written(
    world: Callable[..., RunContext],
) -> None:
    context = world(train__epochs=2)
    write_text(context.run.model / "config.json", "{}")
    write_manifest(context.run.model, Manifest("train", "0" * 64, 3, {}, {}, {}, {}, 1.0))
    with pytest.raises(StaleError, match=r"model is finished and would be replaced: .*Give this run another name"):
        write_jobs(context, [], Path.cwd(), submit=False)
    assert not context.run.slurm.exists()


def test_a_working_directory_that_is_not_utf_8_is_an_error(world: Callable[..., RunContext]) -> None:
    with pytest.raises(InputError, match="is not UTF-8"):
        write_jobs(world(), [], Path(os.fsdecode(b"/bad\xff")), submit=False)


@pytest.mark.usefixtures("one_machine_slurm")
def test_a_real_slurm_runs_the_array_and_the_job_behind_it_makes_the_rows_of_a_shard_that_was_cancelled(
    world: Callable[..., RunContext], tmp_path: Path
) -> None:
    (tmp_path / "world" / "codetune.yaml").write_text(f"{PROJECT}slurm: {{shards: 2}}\n", encoding="utf-8")
    context, arguments = world(select__strategy="kcenter"), ["--set", "select.strategy=kcenter", "--quiet"]
    arguments += ["--set", "embed.batch_size=2"]
    numbers = {one.job.name: one.number for one in write_jobs(context, arguments, tmp_path / "world", submit=True)}
    assert list(numbers) == ["embed", "select", "train", "evaluate"]
    with pytest.raises(BusyError, match="in the queue still"):
        write_jobs(context, arguments, tmp_path / "world", submit=True)
    subprocess.run(["scancel", f"{numbers['embed']}_1", str(numbers["train"]), str(numbers["evaluate"])], check=True)
    await_jobs()
    logs = {path.name: path.read_text(encoding="utf-8") for path in context.run.slurm.glob("*.log")}
    assert logs.keys() == {
        f"codetune-small-embed-{numbers['embed']}_0.log",
        f"codetune-small-select-{numbers['select']}.log",
    }
    assert {line.stage: line.state for line in run_status(context)}["select"] == "done", logs
    assert [job.name for job in remaining_jobs(context, arguments)] == ["train", "evaluate"]
