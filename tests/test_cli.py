"""Commands as a user types them: exit statuses, what goes to which stream, and mistakes told without loading torch."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from codetune.cli import app
from codetune.cli_app import perform
from codetune.cli_options import completed_assignments
from codetune.console import CommandResult
from codetune.errors import InputError
from codetune.project.file import read_project
from codetune.stages.runner import SAVED
from tests import pipeline
from tests.small_world import context_of, make_small_world, run_codetune

COMMANDS = (
    "init",
    "score",
    "embed",
    "select",
    "train",
    "generate",
    "sanitize",
    "evaluate",
    "eval",
    "run",
    "status",
    "plan",
    "report",
    "doctor",
    "slurm",
    "demo",
)


def test_help_names_every_command_on_standard_output(tmp_path: Path) -> None:
    told = run_codetune("--help", cwd=tmp_path)
    assert told.returncode == 0
    assert all(f" {command} " in told.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["select", "--ratio", "1.4"], ["score", "--shard", "8/8"], ["status"]]
)
def test_help_and_mistakes_come_without_torch(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "codetune.yaml").write_text("nme: typo\n", encoding="utf-8")
    program = (
        "import sys, codetune.main\n"
        f"sys.argv = ['codetune', *{arguments!r}]\n"
        "try: codetune.main.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'evalplus', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["select", "--help"], ["eval", "--help"]])
def test_help_fits_a_narrow_terminal_without_cutting_a_name(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    told = CliRunner().invoke(app, words).stdout
    assert not [line for line in told.splitlines() if len(line) > 40]
    assert "…" not in told
    assert "..." not in told.replace("[ARGS]...", "")
    assert all(name in told for name in (("Around a run:", "\n  sweep ") if len(words) == 1 else ("--quiet", "--set")))


def test_every_command_can_be_quiet_and_completes_its_name(tmp_path: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert not [name for name, found in commands.items() if not any("--quiet" in part.opts for part in found.params)]
    assert completed("codetune sc", tmp_path) == ["score"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("codetune train --pad-mode dynamic_pa", ["dynamic_pad", "dynamic_pack"]),
        ("codetune run --from s", ["score", "select", "sanitize"]),
        ("codetune select --set train.lora.a", ["train.lora.alpha="]),
        ("codetune train --set train.pad_mode=dynamic_pa", ["dynamic_pad", "dynamic_pack"]),
    ],
)
def test_the_shell_completes_values_and_keys_of_the_project_file(line: str, words: list[str], tmp_path: Path) -> None:
    assert completed(line, tmp_path) == words


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        ("train.pad_mode=paper", ["train.pad_mode=paper_pack"]),
        ("train.meth", [f"train.method={method}" for method in ("full", "lora", "qlora")]),  # the only key
        ("train.tf32=", ["train.tf32=true", "train.tf32=false"]),
        ("train.m", [f"train.{key}=" for key in ("method", "max_length", "max_steps", "max_grad_norm", "merge")]),
        ("select.mismatch", ["select.mismatch=", "select.mismatch_level="]),
        ("select.mismatch=c", ["select.mismatch=calibrated"]),
        ("train.epochs=", []),
        ("no.such=", []),
    ],
)
def test_a_begun_assignment_is_completed_by_keys_and_then_by_words(begun: str, words: list[str]) -> None:
    assert completed_assignments(begun) == words


def completed(line: str, directory: Path) -> list[str]:
    """As bash asks: it breaks words at `=`."""
    parts = re.findall("=|[^ =]+", line)
    words = {"COMP_WORDS": "\n".join(parts), "COMP_CWORD": f"{len(parts) - 1}", "_CODETUNE_COMPLETE": "complete_bash"}
    return run_codetune(cwd=directory, environment=words).stdout.split()


@pytest.mark.parametrize("shard", ["8/8", "0/0", "a/b", "-1/2", "1", "1/2/3", ""])
def test_an_impossible_shard_is_a_usage_error(shard: str, tmp_path: Path) -> None:
    told = run_codetune("score", "--shard", shard, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert "--shard" in told.stderr


def test_every_mistake_of_the_project_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "codetune.yaml").write_text(
        "select:\n  ratio: 1.4\n  ratio: 0.4\n  strategi: all\ntrain: {epochs: three}\n", encoding="utf-8"
    )
    told = run_codetune("select", "--json", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    for part in ("codetune.yaml:3: duplicate key", "codetune.yaml:2: select.ratio is 1.4", "did you mean strategy?"):
        assert part in told.stderr
    assert "codetune.yaml:5: train.epochs is 'three'" in told.stderr


def test_a_project_named_but_missing_is_an_error_even_where_none_is_needed(tmp_path: Path) -> None:
    told = run_codetune("evaluate", "humaneval", "-p", "nowhere.yaml", cwd=tmp_path)
    assert told.returncode == 2
    assert "nowhere.yaml: no such project file" in told.stderr


def test_init_writes_a_project_that_loads_and_never_overwrites_one(tmp_path: Path) -> None:
    assert run_codetune("init", "sub", "--preset", "cpu", cwd=tmp_path).returncode == 0
    written = (tmp_path / "sub" / "codetune.yaml").read_text(encoding="utf-8")
    again = run_codetune("init", "sub", cwd=tmp_path)
    assert again.returncode == 2
    assert (tmp_path / "sub" / "codetune.yaml").read_text(encoding="utf-8") == written
    assert run_codetune("status", cwd=tmp_path / "sub").returncode == 0


def test_status_makes_nothing(tmp_path: Path) -> None:
    make_small_world(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told = run_codetune("status", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["next"] == "codetune score"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_benchmark_name_with_a_typo_is_told_the_nearest(tmp_path: Path) -> None:
    told = run_codetune("evaluate", "humanevl", "--samples", "x.jsonl", cwd=tmp_path)
    assert told.returncode == 2
    assert "did you mean humaneval?" in told.stderr


@pytest.mark.parametrize("more", [("--samples", "y.jsonl"), ("--model", "base")])
def test_what_is_to_be_judged_is_named_once(more: tuple[str, str], tmp_path: Path) -> None:
    told = run_codetune("evaluate", "humaneval", "--samples", "x.jsonl", *more, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert "evaluate judges one file of --samples, or one --model. Found: several" in told.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("repor", "error: No such command 'repor'. Did you mean 'report'? See: codetune --help"),
        ("trai -p P", "error: No such command 'trai'. Did you mean 'train'? See: codetune --help"),
        ("-p P scor", "error: No such option: -p. Options come after the command, as in: codetune COMMAND -p PATH."),
        ("score -p P --foo", "error: No such option: --foo. See: codetune score --help"),
    ],
)
def test_no_error_names_a_command_that_does_not_exist(words: str, told: str, tmp_path: Path) -> None:
    assert run_codetune(*words.split(), cwd=tmp_path).stderr.startswith(told)


def test_a_file_that_is_not_there_is_no_benchmark(tmp_path: Path) -> None:
    told = run_codetune("sanitize", "nowhere.jsonl", cwd=tmp_path)
    assert told.returncode == 2
    assert "There is no file 'nowhere.jsonl'" in told.stderr


def test_a_closed_standard_output_is_told_before_any_work(tmp_path: Path) -> None:
    make_small_world(tmp_path, 6)
    command = f"{sys.executable} -m codetune embed >&-"
    told = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "Standard output is closed" in told.stderr
    assert not (tmp_path / "runs" / "small" / "embeddings.npy").exists()


def test_a_stage_prints_one_json_document_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    make_small_world(tmp_path, 6)
    told = run_codetune("embed", "--json", cwd=tmp_path)
    document = json.loads(told.stdout)
    contract = ["stage", "state", "rows", "reused", "refused", "artefact", "seconds", "overrides"]
    assert list(document) == [*contract, "row_formats"]
    assert (document["stage"], document["state"], document["rows"], told.returncode) == ("embed", "done", 6, 0)
    assert told.stderr == ""


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_the_command_continues(tmp_path: Path, asked: signal.Signals) -> None:
    project = make_small_world(tmp_path, 250)
    command = [sys.executable, "-m", "codetune", "score", "--set", "score.tokens_per_batch=64"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "small" / "scores.jsonl.parts" / "0-of-1.log"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(asked)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert "Progress saved. Run the same command to continue." in complaint
    assert pipeline.score(context_of(project, score__tokens_per_batch=64), None).reused > 0


@pytest.mark.parametrize(
    ("changes_nothing", "said", "told"),
    [
        (True, [], "Interrupted. Nothing was changed."),
        (False, [], "Interrupted. What was finished is kept. Run the same command to continue."),
        (False, [SAVED], "Progress saved. Run the same command to continue."),
    ],
)
def test_an_interrupt_says_what_it_means(
    changes_nothing: bool, said: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> CommandResult:
        raise KeyboardInterrupt(*said)

    with pytest.raises(typer.Exit) as end:
        perform(work, as_json=False, changes_nothing=changes_nothing)
    assert (end.value.exit_code, capfd.readouterr().err) == (130, f"{told}\n")


def test_a_result_that_says_that_something_is_wrong_ends_with_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end:
        perform(lambda: CommandResult("plan", exit_status=2, document={"failures": ["x"]}), as_json=True)
    assert (end.value.exit_code, json.loads(capfd.readouterr().out)) == (2, {"failures": ["x"]})


def test_an_interrupt_before_anything_is_read_ends_with_a_line_and_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "codetune", "status"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while " typer" not in process.stderr.readline():
        continue
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.endswith("Interrupted. Nothing had begun.\n")
    assert "Traceback" not in complaint


def test_an_interrupt_while_python_compiles_a_text_ends_with_130_as_well() -> None:
    program = (
        "import codetune.main, codetune.__main__\n"
        "def interrupted():\n"
        "    try: exec('raise KeyboardInterrupt')  # as where a dataclass is made\n"
        "    except KeyboardInterrupt: return 130\n"
        "codetune.main._exit_status = interrupted\n"
        "codetune.__main__.main()"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 130


def test_commands_that_are_suggested_name_the_project_and_the_run_that_were_named(tmp_path: Path) -> None:
    make_small_world(tmp_path, 6).rename(tmp_path / "other.yaml")
    told = run_codetune("train", "-p", "other.yaml", "--set", "name=second", "--set=seed=1", cwd=tmp_path)
    assert told.stderr.endswith("Run: codetune select -p other.yaml --set name=second\n")
    status = json.loads(run_codetune("status", "--project=other.yaml", "--json", cwd=tmp_path).stdout)
    assert status["next"] == "codetune score -p other.yaml"
    asked = (
        "status",
        "-p",
        "other.yaml",
        "--set",
        "seed=1",
        "--json",
    )  # without its flags the next command helps little
    assert json.loads(run_codetune(*asked, cwd=tmp_path).stdout)["next"] == "codetune score -p other.yaml --set seed=1"


def test_init_takes_any_key_and_tells_a_wrong_one(tmp_path: Path) -> None:
    assert (
        run_codetune("init", "--preset", "cpu", "--set", "seed=7", "--set", "select.ratio=0.3", cwd=tmp_path).returncode
        == 0
    )
    project = read_project(tmp_path / "codetune.yaml", [], {})
    assert (project.seed, project.select.ratio, project.overrides) == (7, 0.3, {})
    assert run_codetune("init", "elsewhere", "--set", "select.ratio=3", cwd=tmp_path).returncode == 2
    assert run_codetune("demo", "world", "--set", "sed=3", cwd=tmp_path).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["codetune.yaml"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("select --ratio 0.2 --count 5", "error: --ratio 0.2 and --count 5 exclude each other"),
        ("select --ratio abc", "error: Invalid value for '--ratio': Input should be a valid number"),
        ("selec", "error: No such command 'selec'. Did you mean 'select'"),
        ("score --shar 0/2", "error: No such option: --shar (Possible options: --shard). See: codetune score --help"),
        ("evaluate", "error: Missing argument 'BENCHMARK'. See: codetune evaluate --help"),
        ("run extra", "error: Got unexpected extra argument"),
        ("plan --price inf", "error: Invalid value for '--price': Input should be less than or equal to"),
    ],
)
def test_a_wrong_command_line_is_told_as_every_other_error(line: str, told: str, tmp_path: Path) -> None:
    done = run_codetune(*line.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_help_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "codetune", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == ("error: Writing failed: No space left on device (standard output). Send it somewhere else\n")


def test_a_file_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"s\xff.jsonl")).touch()
    done = run_codetune("evaluate", "humaneval", "--samples", os.fsdecode(b"s\xff.jsonl"), cwd=tmp_path)
    assert done.returncode == 2
    assert r"'s\udcff.jsonl' is not UTF-8" in done.stderr


def test_a_full_standard_output_is_named(tmp_path: Path) -> None:
    make_small_world(tmp_path, 6)
    command = f"{sys.executable} -m codetune status --json >/dev/full"
    told = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "No space left on device (standard output)" in told.stderr


def test_a_second_run_on_the_same_output_names_the_first(tmp_path: Path) -> None:
    make_small_world(tmp_path, 400)
    command = [sys.executable, "-m", "codetune", "score", "--set", "score.tokens_per_batch=64"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "runs" / "small" / "scores.jsonl.parts" / "0-of-1.log"
    while not log.exists() and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it holds its lock until it is killed, however slowly the second one starts
    second = run_codetune("score", cwd=tmp_path)
    first.kill()
    first.wait()
    assert second.returncode == 1
    assert f"Process {first.pid}" in second.stderr


@pytest.mark.parametrize("stage", ["score", "embed"])
def test_where_writing_fails_the_work_is_kept_and_continues_when_there_is_room(stage: str, tmp_path: Path) -> None:
    calm, full = (make_small_world(tmp_path / name, 100) for name in ("calm", "full"))
    verb = {"score": pipeline.score, "embed": pipeline.embed}[stage]
    # A limit on file sizes stands for a full disk: the write in the middle of a file fails.
    limit = {"score": 8_000, "embed": 30_000}[stage]
    program = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
    program += f"import sys; sys.argv = ['codetune', {stage!r}]; runpy.run_module('codetune', run_name='__main__')"
    failed = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "full", capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "Writing failed" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert verb(context_of(full), None).artefact.read_bytes() == verb(context_of(calm), None).artefact.read_bytes()


def test_a_file_that_may_not_be_read_is_for_the_user_to_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything

    def read() -> CommandResult:
        raise PermissionError(errno.EACCES, "Permission denied", str(weights))

    with pytest.raises(InputError, match=f"{weights} cannot be read: .*chmod u\\+rX {weights}"):
        perform(read, as_json=False)


@pytest.fixture(scope="module")
def broken_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a project whose data set is cut in its first row."""
    project = make_small_world(tmp_path_factory.mktemp("broken"), 6)
    (project.parent / "data.jsonl").write_text('{"instruction": "x", "out\n', encoding="utf-8")
    return project.parent


@pytest.mark.parametrize("stage", ["score", "embed", "train"])
def test_mistakes_in_the_data_come_without_torch(broken_data: Path, stage: str) -> None:
    program = (
        "import sys, codetune.main\n"
        f"sys.argv = ['codetune', {stage!r}]\n"
        "try: codetune.main.main()\n"
        "except SystemExit as end: assert end.code == 2, end.code\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=broken_data, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
