"""Mismatched pairs of several kinds, planted in real rows: what each rule finds, and what else it drops.

    python -m tests.performance.mismatch --data DIR --model DIR --embedder DIR --kept DIR

`--data` has `code-alpaca-20k.json.gz` and `evol-round*.json`; `--model` is a causal language model (scored in
bfloat16), `--embedder` a sentence-transformers model; `--kept` keeps what is measured, so that a second call continues.
The rows of the record are those that were measured: `--rows` bounds them, and `--figures-only` measures nothing.

One kind is planted at a time, in a tenth of the rows, in turn in every row that has it: recall is over all of these.
The false share is that of good rows that are dropped beside them; precision follows for a tenth of mismatched rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codetune.launch.environment import prepare_process

prepare_process()

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from codetune.benchmark.statistics import wilson_interval
from codetune.model.load import load_tokenizer
from codetune.selection.mismatch import find_mismatched
from tests.performance.mismatch_likelihoods import draw_rows, measure, repeated_instructions, similar_instructions
from tests.performance.record import write_record

Floats = NDArray[np.float64]
Likelihoods = Mapping[str, NDArray[np.float32]]  # context -> nats of each answer token

DATA_SETS = {"code-alpaca": ("code-alpaca-20k.json.gz", 1250), "evol": ("evol-round*.json", 3919)}
KINDS = ("random", "cluster", "near", "language", "truncated", "repeat")
SEED, LEVEL, PAIRS, PLANTED_SHARE, SLICE_ROWS = 42, 0.05, 256, 0.1, 80


@dataclass(frozen=True, slots=True)
class Columns:
    """What a rule knows of the rows, as scores.jsonl has it."""

    ifd: Floats
    pmi: Floats
    tokens: Floats
    shuffled_pmi: Floats  # NaN outside of the sample


def published(rows: Columns) -> NDArray[np.bool_]:
    return rows.ifd >= 1


def one_quantile(rows: Columns) -> NDArray[np.bool_]:
    """One limit for all lengths: the 95 % quantile of the shuffled pairs."""
    return rows.pmi < np.nanquantile(rows.shuffled_pmi, 1 - LEVEL)


def calibrated(rows: Columns) -> NDArray[np.bool_]:
    test = find_mismatched(rows.pmi, rows.tokens, rows.shuffled_pmi, LEVEL)
    return (rows.ifd >= 1) | ((rows.pmi < test.limits) & test.has_power)


RULES: Mapping[str, Callable[[Columns], NDArray[np.bool_]]] = {
    "ifd": published,
    "one quantile": one_quantile,
    "calibrated": calibrated,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--data", "--model", "--embedder", "--kept"):
        arguments.add_argument(name, type=Path, required=True)
    arguments.add_argument("--rows", type=int, default=1000, help="of each data set, at most")
    arguments.add_argument("--figures-only", action="store_true")
    given = arguments.parse_args()
    if not given.figures_only:
        measure_all(given.data, given.model, given.embedder, given.kept, given.rows)
    figures = {name: evaluate(read_likelihoods(given.kept, name)) for name in DATA_SETS}
    settings = {"level": LEVEL, "planted_share": PLANTED_SHARE, "dtype": "bfloat16", "model": given.model.name}
    print(write_record("mismatch", settings, figures))


def measure_all(data: Path, model: Path, embedder: Path, kept: Path, rows: int) -> None:
    """A slice of every data set after the other, so that an interrupted run has something of each."""
    tokenizer, network = load_tokenizer(model), AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    drawn = {name: draw_rows(data / file, tokenizer, count, SEED)[:rows] for name, (file, count) in DATA_SETS.items()}
    similar = {name: similar_instructions(found, embedder, SEED) for name, found in drawn.items()}
    for first in range(0, rows, SLICE_ROWS):
        for name in DATA_SETS:
            part = slice(0, first + SLICE_ROWS)
            measure(drawn[name][part], network, tokenizer, kept, name)
            measure(similar[name][part], network, tokenizer, kept, f"{name}-similar")
            measure(repeated_instructions(drawn[name])[part], network, tokenizer, kept, f"{name}-repeat")


def read_likelihoods(kept: Path, name: str) -> dict[str, dict[str, NDArray[np.float32]]]:
    """The measured rows by id; contexts of the repeated instruction begin with `repeat `."""
    rows: dict[str, dict[str, NDArray[np.float32]]] = {}
    for part, prefix in ((name, ""), (f"{name}-similar", ""), (f"{name}-repeat", "repeat ")):
        for path in sorted(kept.glob(f"{part}-?????.npz")):
            for key, nats in np.load(path).items():
                row_id, _, context = key.partition(" ")
                rows.setdefault(row_id, {})[prefix + context] = nats
    return {row_id: rows[row_id] for row_id in sorted(rows) if {"own", "none", "empty"} <= rows[row_id].keys()}


def evaluate(likelihoods: Mapping[str, Likelihoods]) -> dict[str, Any]:
    """For each kind and rule: recall, false share and precision."""
    rows = list(likelihoods.values())
    pairs = min(PAIRS, sum("random" in row for row in rows) // 2)
    figures: dict[str, Any] = {
        "rows": len(rows),
        "shuffled_pairs": pairs,
        "answer_tokens": quartiles(len(row["own"]) for row in rows),
    }
    for kind in [kind for kind in KINDS if any(wrong(row, kind) for row in rows)]:
        figures[kind] = {rule: plant(rows, kind, choose) for rule, choose in RULES.items()}
    return figures


def plant(rows: Sequence[Likelihoods], kind: str, choose: Callable[[Columns], NDArray[np.bool_]]) -> dict[str, Any]:
    sample = [index for index, row in enumerate(rows) if "random" in row]
    sample = sample[: min(PAIRS, len(sample) // 2)]
    good, able = columns(rows, sample), [index for index in range(len(rows)) if wrong(rows[index], kind)]
    if kind == "random":
        able = [index for index in able if index not in set(sample)]
    folds = -(-len(able) // max(1, int(PLANTED_SHARE * len(rows))))
    found = planted = dropped = kept = 0
    for fold in range(folds):
        indices = able[fold::folds]
        is_dropped = choose(with_planted(good, rows, indices, kind))
        found, planted = found + int(is_dropped[indices].sum()), planted + len(indices)
        dropped, kept = dropped + int(is_dropped.sum() - is_dropped[indices].sum()), kept + len(rows) - len(indices)
    false_share = dropped / max(1, kept)
    recall = found / max(1, planted)
    precision = PLANTED_SHARE * recall / max(1e-9, PLANTED_SHARE * recall + (1 - PLANTED_SHARE) * false_share)
    return {
        "planted": planted,
        "recall": round(recall, 3),
        "recall_interval_95": interval(found, planted),
        "false_share": round(false_share, 4),
        # Every row is good in all folds but one: the rows are the independent observations, not the folds.
        "false_share_interval_95": interval(round(false_share * len(rows)), len(rows)),
        "precision": round(precision, 3),
    }


def columns(rows: Sequence[Likelihoods], sample: Sequence[int]) -> Columns:
    own, none, empty = (np.array([row[name].mean(dtype=float) for row in rows]) for name in ("own", "none", "empty"))
    shuffled = np.full(len(rows), np.nan)
    shuffled[sample] = [empty[index] - rows[index]["random"].mean(dtype=float) for index in sample]
    return Columns(np.exp(own - none), empty - own, np.array([float(len(row["own"])) for row in rows]), shuffled)


def with_planted(good: Columns, rows: Sequence[Likelihoods], indices: Sequence[int], kind: str) -> Columns:
    changed = replace(good, ifd=good.ifd.copy(), pmi=good.pmi.copy(), tokens=good.tokens.copy())
    for index in indices:
        measured = wrong(rows[index], kind)
        assert measured is not None
        own, none, empty = (nats.mean(dtype=float) for nats in measured)
        changed.ifd[index], changed.pmi[index] = np.exp(own - none), empty - own
        changed.tokens[index] = len(measured[0])
    return changed


def wrong(row: Likelihoods, kind: str) -> tuple[NDArray[np.float32], ...] | None:
    """The nats of the mismatched pair after its instruction, after nothing, and after the empty prompt."""
    if kind == "truncated":  # the first half of the answer: its tokens do not see the second
        half = len(row["own"]) // 2
        return (row["own"][:half], row["none"][:half], row["empty"][:half]) if half else None
    if kind == "repeat":
        return (row["repeat own"], row["repeat none"], row["repeat empty"]) if "repeat own" in row else None
    return (row[kind], row["none"], row["empty"]) if kind in row else None


def quartiles(values: Iterator[int]) -> list[float]:
    return np.quantile(list(values), [0, 0.25, 0.5, 0.75, 1]).tolist()


def interval(successes: int, trials: int) -> list[float] | None:
    return [round(bound, 3) for bound in wilson_interval(successes, trials)] if trials else None


if __name__ == "__main__":
    main()
