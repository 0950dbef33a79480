"""The claim, twice: 40 % of the rows, chosen by several rules, against as many random rows and against all of them.

    python -m tests.performance.claim demo DIR [--tasks 1000] [--seeds 5]
    python -m tests.performance.claim real DIR --data DIR --model DIR --embedder DIR [--size gpu] [--seeds 3]

`demo` is the world of `codetune demo` with more held-out tasks; a seventh of its rows are mismatched pairs. `real` is a
draw of short Evol-Instruct rows (`evol-round*.json` in `--data`), in 15 % of which the answers are exchanged; its
outcome is the loss on held-out rows, of which those with an exchanged answer do not count. `--size gpu` takes nearly
all rows, and longer ones. Both write a project into DIR and sweep over it, so a run that was killed continues, and more
seeds come to what is there. The record is written anew after each seed."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codetune.launch.environment import prepare_process

prepare_process()

from codetune.data.source import read_examples
from codetune.demo.demo_project import write_demo_project
from codetune.errors import CodetuneError, UsageError
from codetune.model.load import load_tokenizer
from codetune.project.file import commented_yaml, read_project
from codetune.project.sections import PROJECT_FILE, Dataset
from codetune.records import BASE, Example, Message, content_id
from codetune.store.files import write_lines, write_text
from codetune.store.row_artefacts import read_selection
from codetune.store.run_directory import Run
from codetune.sweep.outcomes import VariantOutcome, sweep_outcomes
from codetune.sweep.perform import run_sweep
from codetune.sweep.variants import ALL, RANDOM, STRATEGY, Sweep
from tests.performance.record import write_record
from tests.performance.table import claim_table, markdown

SHARE, PLANTED_SHARE, HELD_OUT_SHARE = 0.4, 0.15, 0.3
VARIED: Sequence[Mapping[str, Sequence[object]]] = (
    {STRATEGY: ["ifd_cluster"], "select.mismatch": ["ifd", "calibrated"]},
    {STRATEGY: ["parametric", "facility"]},
)
UNCHOSEN = (BASE, ALL, RANDOM)
LONGEST_FORMAT = 64  # tokens that a chat format, or the prompt of the scores, adds to a row, at most
REAL: Mapping[str, object] = {
    "name": "real",
    "dataset.path": "data.jsonl",
    "dataset.instruction": "instruction",
    "dataset.response": "output",
    "model.dtype": "bfloat16",
    "select.decontaminate": [],
    "train.gradient_accumulation_steps": 1,
    "train.gradient_checkpointing": False,
    "train.holdout": HELD_OUT_SHARE,
    "train.keep_best": None,  # by the loss on all held-out rows, the exchanged ones as well
    "train.evaluate_steps": 1_000_000,
}


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows are drawn, how many tokens of instruction and answer one has at most, and how they are learned."""

    rows: int
    tokens: int
    settings: Mapping[str, object]


SIZES = {
    "cpu": Size(
        240,
        120,
        {
            "train.method": "lora",
            "train.epochs": 1,
            "train.per_device_batch_size": 4,
            "train.learning_rate": 1.0e-3,
            "train.warmup_steps": 5,
            "train.lora.dropout": 0.0,
            "train.lora.r": 16,
            "train.lora.alpha": 32,
        },
    ),
    "gpu": Size(3500, 1024, {"train.epochs": 2, "train.per_device_batch_size": 16, "train.learning_rate": 1.0e-4}),
}


@dataclass(frozen=True, slots=True)
class World:
    """A project, the ids of its mismatched pairs, and whether its outcome is a benchmark or held-out rows."""

    project_file: Path
    assignments: Sequence[str]
    mismatched: frozenset[str]
    has_benchmark: bool

    def sweep(self, varied: Mapping[str, Sequence[object]], seeds: int, assignments: Sequence[str] = ()) -> Sweep:
        return Sweep(
            self.project_file,
            [*self.assignments, *assignments],
            varied,
            seeds,
            has_benchmarks=self.has_benchmark,
            uncounted=self.mismatched,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    given = read_arguments(arguments)
    try:
        perform(given)
    except CodetuneError as error:
        print(f"claim: error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def perform(given: argparse.Namespace) -> None:
    require_own_directory(given.directory, given.seed)
    settings = {key: value.name if isinstance(value, Path) else value for key, value in vars(given).items()}
    world, name = demo_world(given) if given.world == "demo" else real_world(given), f"claim-{given.world}"
    for seeds in range(1, given.seeds + 1):
        figures = measure(world, seeds)
        print(write_record(name, {**settings, "seeds": seeds}, figures, given.directory), flush=True)
        print(markdown(claim_table({name: figures})), flush=True)


def require_own_directory(directory: Path, seed: int) -> None:
    """Raises UsageError for a file, and for a directory of another seed: runs of the two would have the same names."""
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file. Expected: a directory. Name another one")
    file = directory / PROJECT_FILE
    there = read_project(file, [], {}).seed if file.is_file() else seed
    if there != seed:
        raise UsageError(
            f"{directory} holds the claim with --seed {there}, and --seed is {seed}. Expected: a directory for each "
            "first seed. Name another one"
        )


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    worlds = parser.add_subparsers(dest="world", required=True)
    demo, real = worlds.add_parser("demo"), worlds.add_parser("real")
    for each, seeds in ((demo, 5), (real, 3)):
        each.add_argument("directory", type=Path)
        each.add_argument("--seeds", type=at_least_one, default=seeds, help=f"of the trainings; default {seeds}")
        each.add_argument("--seed", type=int, default=42, help="of the rows, and the first one of the trainings; 42")
        each.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    demo.add_argument("--tasks", type=at_least_one, default=1000, help="held out; default 1000")
    for name in ("--data", "--model"):
        real.add_argument(name, type=Path, required=True)
    real.add_argument("--embedder", type=Path, help="a sentence-transformers model; without it: hashed n-grams")
    real.add_argument("--size", choices=SIZES, default="cpu")
    return parser.parse_args(arguments)


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}. Expected: a whole number, 1 or more")
    return int(text)


def demo_world(given: argparse.Namespace) -> World:
    made = write_demo_project(given.directory, given.seed, given.tasks)
    return World(made.project_file, given.assignments, made.mismatched, has_benchmark=True)


def real_world(given: argparse.Namespace) -> World:
    size = SIZES[given.size]
    rows, exchanged = plant(draw_rows(given.data / "evol-round*.json", given.model, size, given.seed), given.seed)
    given.directory.mkdir(parents=True, exist_ok=True)
    documents = ({"instruction": instruction, "output": answer} for instruction, answer in rows)
    write_lines(given.directory / "data.jsonl", map(json.dumps, documents))
    embedder = str(given.embedder.resolve()) if given.embedder else "hashing"
    places = {"model.path": str(given.model.resolve()), "embed.model": embedder}
    lengths = dict.fromkeys(("score.max_length", "train.max_length"), size.tokens + LONGEST_FORMAT)
    settings = {**REAL, **size.settings, **places, **lengths, "seed": given.seed}
    write_text(given.directory / PROJECT_FILE, commented_yaml(settings))
    return World(given.directory / PROJECT_FILE, given.assignments, exchanged, has_benchmark=False)


def draw_rows(path: Path, model: Path, size: Size, seed: int) -> list[tuple[str, str]]:
    """Instruction and answer of as many rows as `size` says, or of all that are short enough."""
    source, tokenizer = Dataset(path=str(path), instruction="instruction", response="output"), load_tokenizer(model)
    rows = [(row.instruction, row.answer) for row in read_examples(source, str(path)) if isinstance(row, Example)]
    lengths = [len(ids) for ids in tokenizer(["\n".join(row) for row in rows])["input_ids"]]
    short = [row for row, length in zip(rows, lengths, strict=True) if length <= size.tokens]
    return random.Random(seed).sample(short, min(size.rows, len(short)))


def plant(rows: Sequence[tuple[str, str]], seed: int) -> tuple[list[tuple[str, str]], frozenset[str]]:
    """The rows, in a share of which each has the answer of another one of them; and the ids of these."""
    chosen = random.Random(seed).sample(range(len(rows)), int(PLANTED_SHARE * len(rows)))
    answers = {row: rows[other][1] for row, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True)}
    planted = [(instruction, answers.get(row, answer)) for row, (instruction, answer) in enumerate(rows)]
    ids = (content_id((Message("user", planted[row][0]), Message("assistant", planted[row][1]))) for row in chosen)
    return planted, frozenset(ids)


def measure(world: World, seeds: int) -> dict[str, Any]:
    """Does what is missing of so many seeds; the figures of base, of the controls and of all variants."""
    everything = world.sweep({STRATEGY: [ALL]}, seeds)
    list(run_sweep(everything))
    of_all = sweep_outcomes(everything)[-1]
    count = int(SHARE * len(trained_rows(of_all.runs[0])))
    found: dict[str, Any] = {}
    for varied in VARIED:
        sweep = world.sweep(varied, seeds, [f"select.count={count}"])
        for name in run_sweep(sweep):
            print(f"{name} is done", flush=True)
        found |= {name_of(outcome): figures_of(outcome, world.mismatched) for outcome in sweep_outcomes(sweep)}
    in_order = sorted(found, key=lambda name: name not in UNCHOSEN)
    return {"mismatched": len(world.mismatched), "models": {name: found[name] for name in in_order}}


def name_of(outcome: VariantOutcome) -> str:
    """The name of a variant or control; `random` for the draw of as many rows, which all variants share."""
    return outcome.name.partition(" as ")[0]


def trained_rows(run: str) -> frozenset[str]:
    return frozenset(row.id for row in read_selection(Run(Path(run)).selection))


def figures_of(outcome: VariantOutcome, mismatched: frozenset[str]) -> dict[str, Any]:
    """Rows, tokens and mismatched pairs are those trained on, the mean over seeds; `base` has none."""
    found = {"figures": rounded(outcome.figures)}
    if outcome.rows is None or outcome.tokens is None:
        return found
    planted = [len(trained_rows(run) & mismatched) for run in outcome.runs]
    against = {control: rounded(differences) for control, differences in outcome.against.items()}
    trained = {"rows": outcome.rows, "tokens": round(outcome.tokens), "mismatched": sum(planted) / len(planted)}
    return {**trained, **found, "against": against}


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(estimate).items()}
        for name, estimate in figures.items()
    }


if __name__ == "__main__":
    main()
