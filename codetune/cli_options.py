"""The flags and arguments that several commands have, each with its line of help; and the project that they make.
Also what holds for every word of a command line."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, get_args

import typer
from typer.models import OptionInfo

from codetune.errors import UsageError
from codetune.project.file import read_project
from codetune.project.keys import fixed_values, keys
from codetune.project.sections import PROJECT_FILE, STAGE_NAMES, Method, PadMode, Project, StageName, Strategy
from codetune.text import lone_surrogate

RUN_KEYS = ("name", "output_dir")  # keys of the project file that say which run is meant
# Not where its help is named: `codetune score --help`.
NAMED_COMMAND = (
    r"\bcodetune (?:score|embed|select|train|generate|sanitize|evaluate|eval|run|status|plan|report|doctor|sweep|slurm)"
    r"\b(?! --help)"
)
ProjectOption = Annotated[
    Path | None, typer.Option("--project", "-p", metavar="PATH", help=f"The project file; default ./{PROJECT_FILE}.")
]


def completes(words: Iterable[str]) -> Callable[[str], list[str]]:
    """What the shell offers in the place of a word that is begun."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]  # typer knows this name


def completed_assignments(incomplete: str) -> list[str]:
    """The keys of the project file that begin so; of one that is written out, or the only one, its words."""
    fields = dict(keys())
    key, has_value, _ = incomplete.partition("=")
    found = [key] if has_value and key in fields else [name for name in fields if name.startswith(incomplete)]
    words = fixed_values(fields[found[0]]) if len(found) == 1 else []
    if not words:
        return [] if has_value else [f"{name}=" for name in found]
    return [word for value in words if (word := f"{found[0]}={value}").startswith(incomplete)]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Any key of the project file. Repeatable.",
        autocompletion=completed_assignments,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Do only blocks I, I+N, ...; the last shard writes the result. auto: from Slurm's job array.",
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Allow discarding a finished model, or checkpoints, made with other settings.")
]
PushOption = Annotated[
    str | None,
    typer.Option(
        metavar="REPO",
        help="Upload the finished model to this repository of the Hugging Face Hub; a new one is private.",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="tuned (default if there is one), base, a path or a Hub id.")
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="tuned, base, a path or a Hub id. Repeatable, to compare."),
]
InstructOption = Annotated[
    bool | None, typer.Option("--instruct/--base", help="Prompt the model as a chat, or with the raw text of the task.")
]
BENCHMARK_NAMES = "humaneval, mbpp, humaneval_pro, mbpp_pro, cruxeval, leetcode, demo"
BenchmarkArgument = Annotated[
    str, typer.Argument(metavar="BENCHMARK", help=f"{BENCHMARK_NAMES}, or the path of a file of tasks.")
]
MeasuredArgument = Annotated[
    str, typer.Argument(metavar="BENCHMARK", help=f"{BENCHMARK_NAMES}, the path of a file of tasks, or holdout.")
]
ComparedArgument = Annotated[
    str,
    typer.Argument(
        metavar="BENCHMARK",
        help=f"{BENCHMARK_NAMES}, the path of a file of tasks, holdout, or all: every benchmark that is at hand.",
    ),
]
AfterOption = Annotated[
    str, typer.Option(metavar="DATE", help="Use only tasks published on or after this day, month or year (leetcode).")
]
SamplesOption = Annotated[
    list[Path] | None, typer.Option("--samples", metavar="FILE", help="Judge this file of samples in EvalPlus format.")
]
LimitOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Use only the first N tasks.")]
TasksOption = Annotated[list[str] | None, typer.Option("--task", metavar="ID", help="Use only this task. Repeatable.")]
RatiosOption = Annotated[str | None, typer.Option(metavar="R,...", help="Shares to take, such as 0.1,0.2,0.4.")]
StrategiesOption = Annotated[str | None, typer.Option(metavar="NAME,...", help="Strategies, such as ifd_cluster,mig.")]
ControlsOption = Annotated[
    bool, typer.Option("--controls/--no-controls", help="Train on as many random rows, and on all, as well.")
]
BenchmarksOption = Annotated[
    bool, typer.Option("--benchmarks/--no-benchmarks", help="Evaluate on benchmarks, or on held-out rows alone.")
]
SideBySideOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Trainings at a time; else as many as launch.processes leaves GPUs for."),
]
CompleteOption = Annotated[bool, typer.Option("--complete", help="Fail unless every task has a sample.")]


def one_of(words: Iterable[str]) -> OptionInfo:
    """A flag that takes one of these words; the shell completes them."""
    known = list(words)
    option: OptionInfo = typer.Option(help=f"One of: {', '.join(known)}.", autocompletion=completes(known))
    return option


def stage_option(flag: str, which: str) -> OptionInfo:
    named = f"{', '.join(STAGE_NAMES[:-1])} or {STAGE_NAMES[-1]}"
    help_line, offered = f"{which} stage: {named}.", completes(STAGE_NAMES)
    option: OptionInfo = typer.Option(flag, metavar="STAGE", help=help_line, autocompletion=offered)
    return option


STRATEGIES, PAD_MODES, METHODS = (one_of(get_args(choices)) for choices in (Strategy, PadMode, Method))


def number_or_word(text: str | None) -> int | str | None:
    """The value of a flag that takes a number or a word such as `auto`; the project refuses other words."""
    return int(text) if text is not None and text.isdecimal() else text


def required_project(
    path: Path | None,
    assignments: list[str] | None,
    flags: Mapping[str, object],
    stages: Collection[StageName] = STAGE_NAMES,
    cleared: Collection[str] = (),
) -> Project:
    """The project that a command of the pipeline cannot do without; `stages` are those that the command runs. A flag
    that is None was not given; the keys `cleared` become null, because another flag takes their place."""
    given = {**dict.fromkeys(cleared), **{key: value for key, value in flags.items() if value is not None}}
    return read_project(path or Path(PROJECT_FILE), assignments or [], given, stages=stages)


def optional_project(
    path: Path | None, assignments: list[str] | None, instruct: bool | None, stages: Collection[StageName]
) -> Project:
    """The project, or the defaults where none is named and none lies here."""
    here = Path(PROJECT_FILE)
    flags = {} if instruct is None else {"generate.prompt": "chat" if instruct else "completion"}
    return read_project(
        path or (here if here.is_symlink() or here.exists() else None), assignments or [], flags, stages=stages
    )


def only_samples(samples: Sequence[Path] | None, model: str | None) -> Path | None:
    """The file to be judged, where it is one and no model."""
    if len(samples or []) + (model is not None) > 1:
        raise UsageError("evaluate judges one file of --samples, or one --model. Found: several. Name one at a time")
    return samples[0] if samples else None


def require_unicode(words: Sequence[str]) -> None:
    """Raises UsageError for a word that is not UTF-8: words are shown again, in documents, locks and errors."""
    for word in words:
        if lone_surrogate(word) is not None:
            raise UsageError(f"{word!a} is not UTF-8. Expected: names in UTF-8. Rename the file")


def with_project_option(text: str, *, all_settings: bool = False) -> str:
    """`text` with `-p PATH` added to each codetune command in it, where the user has named a project file, and with
    `--set name=NAME` where the user has named the run; with `all_settings` every `--set` that the user gave."""
    words = sys.argv[1:]
    named = [word.partition("=")[2] for word in words if word.startswith("--project=")]
    named += [word[2:] for word in words if word.startswith("-p") and word != "-p"]
    named += [after for word, after in pairwise(words) if word in ("-p", "--project")]
    options = ["-p", named[-1]] if named else []
    settings = [word.partition("=")[2] for word in words if word.startswith("--set=")]
    settings += [after for word, after in pairwise(words) if word == "--set"]
    for setting in settings:
        options += ["--set", setting] if all_settings or setting.partition("=")[0].strip() in RUN_KEYS else []
    added = "".join(f" {shlex.quote(option)}" for option in options)
    return re.sub(NAMED_COMMAND, lambda command: command[0] + added, text)


def words(text: str | None) -> list[object]:
    """The words of a flag that takes several, separated by commas."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def numbers(flag: str, text: str | None) -> list[object]:
    """The numbers of such a flag. Raises UsageError for a word that is none."""
    try:
        found: list[object] = [float(str(word)) for word in words(text)]
    except ValueError:
        raise UsageError(f"{flag} {text}: expected numbers with commas between them, such as 0.1,0.2,0.4") from None
    return found


# The sweep gives each run its own; and variants with different tasks cannot be compared.
NOT_VARIED = ("name", "output_dir", "seed", "evaluate.benchmarks", "evaluate.k")


def varied_values(
    strategy: str | None, ratio: str | None, fixed: Sequence[str], lists: Mapping[str, Sequence[object]]
) -> dict[str, Sequence[object]]:
    """The values of each key that a sweep varies, by its flags and by `--set KEY=[A, B]`. Raises UsageError for a flag
    without values, for a key that is said twice, and for one that a sweep cannot vary."""
    flags = {"select.strategy": ("--strategy", words(strategy)), "select.ratio": ("--ratio", numbers("--ratio", ratio))}
    given = {
        key: flags[key] for key, text in (("select.strategy", strategy), ("select.ratio", ratio)) if text is not None
    }
    for flag, values in given.values():
        if not values:
            raise UsageError(f"{flag} has no values. Expected: one or more, with commas between them. Name them")
    for key in lists:
        if key in NOT_VARIED:
            raise UsageError(
                f"--set {key}=[...]: a sweep cannot vary {key}. Expected: a key of selection, training or generation; "
                "it names and places its runs itself, --seeds gives them seeds, and all of them get the same tasks"
            )
    set_once = [assignment.partition("=")[0].strip() for assignment in fixed]
    for key in [*given, *lists]:
        if key in set_once or (key in given and key in lists):
            said = given[key][0] if key in given else f"--set {key}=[...]"
            raise UsageError(f"{said} and --set {key} both say {key}. Expected: its values in one place. Leave one out")
    if "select.ratio" in (*given, *lists) and "select.count" in (*set_once, *lists):
        raise UsageError("select.ratio varies, and --set select.count takes its place. Leave one of them out")
    return {**{key: values for key, (_, values) in given.items()}, **lists}


def require_outcome(project: Project, benchmarks: bool) -> None:
    """Raises UsageError for a sweep that would measure nothing."""
    if not benchmarks and not project.train.holdout:
        raise UsageError(
            "--no-benchmarks leaves the held-out rows to compare by, and train.holdout is 0. Expected: one of the two. "
            "Set train.holdout, such as --set train.holdout=0.1, or leave the flag out"
        )
