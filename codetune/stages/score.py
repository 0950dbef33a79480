"""score: instruction-following difficulty (IFD) of every row, and the likelihoods of its answer -> `scores.jsonl`.

The values after the empty prompt and after another row's instruction are additions: scores without them stay valid for
what does not need them, and a score that lacks one gets the missing passes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.console import quantity
from codetune.errors import ProjectError
from codetune.model.model_files import count_weights
from codetune.project.sections import Project
from codetune.records import Example, Message, Refusal, Score
from codetune.selection.shuffled_sample import choose_partners, shuffled_sample
from codetune.selection.strategies import STRATEGIES, needs_scores
from codetune.stages.dataset import READING_FACTS, dataset_input, left_out_notes, reading_facts
from codetune.stages.inputs import model_input
from codetune.stages.row_stage import BlockWork, Plan, RowStage, threads_of
from codetune.stages.stage import (
    Details,
    Input,
    Recipe,
    RunContext,
    Settings,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.store import row_artefacts
from codetune.store.block_log import FinishedRows
from codetune.store.digests import combined
from codetune.store.examples import read_examples
from codetune.store.files import write_text
from codetune.store.locks import waiting

if TYPE_CHECKING:
    from codetune.selection.score import ScoringPasses
    from codetune.store.run_directory import Run

# Estimated tokens of a block without a GPU, where the project says `auto`: a second or so of a small model.
AUTO_TOKENS_PER_BATCH = 8192
TOKENS = "score.token_differences"
SHORT = Example("0" * 16, (Message("user", "x"), Message("assistant", "y = 1")), "")
ADDITIONS = ("score.empty_prompt", "score.shuffled_rows", TOKENS)
WEIGHTS = "weights"  # fact: how many the model has; None where that is not known
ADDED_VALUES = ("pmi", "nll_empty", "nll_shuffled", "shuffled_with")
TOKEN_VALUE = "token_differences"


def tokens_per_pass(context: RunContext, recipe: Recipe, device: str, measure: Callable[[], int]) -> int:
    """Tokens of a forward pass, and so of a block. What a GPU has room for is measured once and kept with the run:
    blocks have to be the same in every process, and after every interruption."""
    settings = context.project.score
    if settings.tokens_per_batch != "auto":
        return settings.tokens_per_batch
    if device == "cpu":
        return AUTO_TOKENS_PER_BATCH
    kept = context.run.tokens_per_batch(combined(map(repr, recipe.identity(without=["dataset"]).items())))
    with waiting(context.run, "tokens-per-batch"):
        if not kept.exists():
            write_text(kept, f"{measure()}\n")
        return int(kept.read_text(encoding="ascii"))


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    return dataset_input(), model_input("model", "score.model" if project.score.model else "model.path")


def _keeps_tokens(project: Project) -> bool:
    """Whether the scores have the differences of each token: where the project says so, or the strategy needs them."""
    asked = project.score.token_differences
    return STRATEGIES[project.select.strategy].needs_tokens if asked == "auto" else asked


def _settings(context: RunContext, request: StageRequest, settings: Settings) -> Settings:
    """The settings without that of token differences where none are kept: such scores are those of earlier versions."""
    others = {key: value for key, value in settings.items() if key != TOKENS}
    return {**others, TOKENS: True} if _keeps_tokens(context.project) else others


def _check_ahead(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    """Raises ProjectError where score.max_length has no room for score.prompt and an answer."""
    from codetune.model.load import load_tokenizer
    from codetune.selection.score import tokenize

    settings = context.project.score
    (found,) = tokenize([SHORT], load_tokenizer(paths["model"]), settings.max_length, settings, {}, {})
    if isinstance(found, Refusal):
        raise ProjectError(
            f"score.max_length is {settings.max_length}, and every row would be refused ({found.reason}). Expected: "
            "room for score.prompt, an instruction and an answer. Raise score.max_length, or shorten score.prompt"
        )


def _plan(context: RunContext, recipe: Recipe) -> Plan:
    from codetune.launch.devices import choose_device, use_threads
    from codetune.model.likelihood import CausalScorer, load_scoring_model, measured_tokens_per_pass
    from codetune.model.load import load_tokenizer
    from codetune.selection.blocks import plan_scoring_blocks
    from codetune.selection.score import score_tokens, tokenize

    directory, model, settings = recipe.paths["model"], context.project.model, context.project.score

    network = cache(lambda: load_scoring_model(directory, model, choose_device()))

    def measure() -> int:
        return measured_tokens_per_pass(network(), settings.max_length)

    budget = tokens_per_pass(context, recipe, choose_device(), measure)

    def load() -> BlockWork[list[ScoringPasses | Refusal]]:
        use_threads(threads_of(context, recipe))
        tokenizer, scorer = load_tokenizer(directory), CausalScorer(network(), budget)
        partners, incomplete = _partners(context), _incomplete_rows(context, recipe)
        by_token = _keeps_tokens(context.project)

        def prepare(examples: Sequence[Example]) -> list[ScoringPasses | Refusal]:
            known = row_artefacts.finished_scores(incomplete, [example.id for example in examples])
            return tokenize(examples, tokenizer, scorer.window, settings, partners, known, by_token=by_token)

        return BlockWork(
            prepare, lambda _, passes: [row_artefacts.score_line(row) for row in score_tokens(passes, scorer)]
        )

    return Plan(plan_scoring_blocks(read_examples(context.run), budget, settings.max_length), load)


def _sample(context: RunContext) -> Sequence[str]:
    """The ids of the rows that are scored after another row's instruction as well."""
    settings = context.project.score
    rows = settings.shuffled_rows if settings.empty_prompt else 0
    return shuffled_sample(read_examples(context.run), rows) if rows else ()


def _partners(context: RunContext) -> Mapping[str, Example]:
    """For the id of each row of the sample the row whose instruction it is scored after."""
    if not (sample := frozenset(_sample(context))):
        return {}
    return choose_partners([example for example in read_examples(context.run) if example.id in sample])


def _sealed_rows(
    context: RunContext, recipe: Recipe, run: Run, *, complete: bool = True
) -> Iterator[tuple[str, int, int]]:
    """The rows of the last scores.jsonl that lack no value that the project asks for, or those that lack one."""
    asked, sample = context.project.score.empty_prompt, frozenset(_sample(context))
    by_token = _keeps_tokens(context.project)

    def is_wanted(row: Score | Refusal) -> bool:
        lacks = isinstance(row, Score) and asked and row.nll_empty is None
        lacks |= isinstance(row, Score) and row.nll_shuffled is None and row.id in sample
        lacks |= isinstance(row, Score) and by_token and row.token_differences is None
        return lacks != complete

    return row_artefacts.sealed_scores(run, is_wanted)


def _incomplete_rows(context: RunContext, recipe: Recipe) -> FinishedRows:
    rows = FinishedRows()
    if run := _ROWS.sealed_alike(context, recipe):
        rows.add_file(run.scores, _sealed_rows(context, recipe, run, complete=False))
    return rows


def _write(context: RunContext, recipe: Recipe, finished: FinishedRows) -> StageOutput:
    without = [] if context.project.score.empty_prompt else [*ADDED_VALUES]
    without += [] if _keeps_tokens(context.project) else [TOKEN_VALUE]
    weights = count_weights(recipe.paths["model"])
    scored, refused, truncated = row_artefacts.write_scores(context.run, finished, without)
    return StageOutput(scored, refused, {"truncated": truncated, WEIGHTS: weights, **reading_facts(context)})


def _details(result: StageResult) -> Details:
    truncated = result.facts.get("truncated", 0)
    cut = [f"cut to fit score.max_length: {quantity(truncated, 'answer')}"] if truncated else []
    return Details([*left_out_notes(result), *cut])


_ROWS = RowStage(_plan, _sealed_rows, _write, ADDITIONS)

SCORE = _ROWS.complete(
    Stage(
        "score",
        _inputs,
        lambda run, request: run.scores,
        _ROWS.write_artefact,
        settings=_settings,
        check_ahead=_check_ahead,
        details=_details,
        documented=READING_FACTS,
        is_taken_over=True,
        is_needed=lambda project: needs_scores(project.select),
    )
)
