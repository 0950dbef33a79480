"""What number format and empty prompt cost when a real small model (SmolLM2-135M-Instruct) scores Evol-Instruct rows
on a CPU.

    python -m tests.performance.score_smollm2 MODEL [precision] [empty-prompt] [--rows 220] [--whole-rows 32]
        [--data DIR]

MODEL is the directory of its weights. `precision`: the published two passes of `--rows` rows, cut at 256 tokens, in
float32 and in bfloat16, block by block in turns; the rank correlation of the two IFDs, what bfloat16 saves, and what
`model.dtype: auto` takes. `empty-prompt`: `--whole-rows` rows at full length in float32 with two passes and with three,
beside the ratio of their tokens. Processor time says more than seconds where other programs are at work. A quarter of
an hour of two cores."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codetune.launch.environment import prepare_process

prepare_process()

from scipy.stats import spearmanr

from codetune.launch.devices import find_precision, keep_freed_memory
from codetune.model.likelihood import CausalScorer
from codetune.model.load import load_model, load_tokenizer
from codetune.project.sections import Model, Precision, Scoring
from codetune.records import Refusal, Score
from codetune.selection.blocks import plan_scoring_blocks
from codetune.selection.score import ScoringPasses, score_tokens, tokenize
from codetune.stages.score import AUTO_TOKENS_PER_BATCH
from tests.performance.record import write_record
from tests.performance.score import evol

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
CUT = Scoring(empty_prompt=False, max_length=256)
MOST_CHARACTERS = 500  # of an instruction that leaves room for an answer within 256 tokens
WHOLE, WITHOUT = Scoring(), Scoring(empty_prompt=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", default=list(PARTS))
    parser.add_argument("--rows", type=int, default=220)
    parser.add_argument("--whole-rows", type=int, default=32)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CODETUNE_TEST_DATA", "../shared/data")))
    given = parser.parse_args()
    keep_freed_memory()
    for part in given.parts:
        figures = PARTS[part](given)
        print(figures, flush=True)
        print(write_record(f"score-{part}", {"model": "SmolLM2-135M-Instruct"}, figures), flush=True)


def compare_precisions(given: argparse.Namespace) -> dict[str, Any]:
    rows = [row for row in evol(given.data, 2000) if len(row.instruction) <= MOST_CHARACTERS][: given.rows]
    tokenizer = load_tokenizer(given.model)
    scorers = {name: _scorer(given.model, name) for name in PRECISIONS}
    scores: dict[str, list[Score | Refusal]] = {name: [] for name in PRECISIONS}
    spent = {name: _no_time() for name in PRECISIONS}
    for block in plan_scoring_blocks(rows, AUTO_TOKENS_PER_BATCH, CUT.max_length):
        passes = tokenize(block.examples, tokenizer, scorers["float32"].window, CUT, {}, {})
        for name in PRECISIONS:
            _add_time(spent[name], partial(score_tokens, passes, scorers[name]), scores[name])
    pairs = [pair for pair in zip(*scores.values(), strict=True) if all(isinstance(row, Score) for row in pair)]
    ifd = [[row.ifd for row in column if isinstance(row, Score)] for column in zip(*pairs, strict=True)]
    return {
        "rows": len(pairs),
        "refused": len(rows) - len(pairs),
        "rank_correlation_of_ifd": round(float(spearmanr(*ifd).statistic), 5),
        **spent,
        "bfloat16_times_as_fast": _ratio(spent["float32"], spent["bfloat16"]),
        "auto": find_precision(),
    }


def compare_passes(given: argparse.Namespace) -> dict[str, Any]:
    rows, tokenizer = evol(given.data, given.whole_rows), load_tokenizer(given.model)
    scorer = _scorer(given.model, "float32")
    spent, tokens = {"two": _no_time(), "three": _no_time()}, {"two": 0, "three": 0}
    for block in plan_scoring_blocks(rows, AUTO_TOKENS_PER_BATCH, WHOLE.max_length):
        for name, settings in (("two", WITHOUT), ("three", WHOLE)):
            passes = tokenize(block.examples, tokenizer, scorer.window, settings, {}, {})
            tokens[name] += _tokens_of(passes)
            _add_time(spent[name], partial(score_tokens, passes, scorer), [])
    return {
        "rows": len(rows),
        "passes": spent,
        "tokens": tokens,
        "three_times_two": _ratio(spent["three"], spent["two"]),
        "three_times_two_by_tokens": round(tokens["three"] / tokens["two"], 3),
    }


def _scorer(model: Path, precision: Precision) -> CausalScorer:
    return CausalScorer(load_model(model, Model(dtype=precision), "cpu"), AUTO_TOKENS_PER_BATCH)


def _tokens_of(passes: Sequence[ScoringPasses | Refusal]) -> int:
    rows = [row for row in passes if isinstance(row, ScoringPasses)]
    return sum(len(span.tokens) for row in rows for span in row.spans.values())


def _no_time() -> dict[str, float]:
    return {"seconds": 0.0, "processor_seconds": 0.0}


def _add_time(
    spent: dict[str, float], score: Callable[[], list[Score | Refusal]], scores: list[Score | Refusal]
) -> None:
    began, processor = time.perf_counter(), time.process_time()
    scores += score()
    spent["seconds"] = round(spent["seconds"] + time.perf_counter() - began, 2)
    spent["processor_seconds"] = round(spent["processor_seconds"] + time.process_time() - processor, 2)


def _ratio(more: dict[str, float], less: dict[str, float]) -> dict[str, float]:
    return {unit: round(more[unit] / less[unit], 3) for unit in more}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "precision": compare_precisions,
    "empty-prompt": compare_passes,
}

if __name__ == "__main__":
    main()
