"""Rows -> scores: instruction-following difficulty (IFD), and the likelihoods that tell a mismatched pair.

IFD (Li et al. 2024, arXiv 2308.12032, sec. 2.2) is the perplexity of the answer given the instruction, over the
perplexity of the answer alone. A low value means that the instruction helps the model to predict the answer. Any prompt
helps, so a fairer baseline is the same prompt with an empty instruction (the domain premise of Holtzman et al. 2021,
arXiv 2104.08315), and a sample of rows is scored after another row's instruction as well (`shuffled_sample.py`). No
score says whether the answer is correct. Which tokens each perplexity is over: docs/method.md, section 1. The forward
passes are in `model/likelihood.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from transformers import PreTrainedTokenizerBase

from codetune.data.control_tokens import control_tokens
from codetune.data.tokens import ScoringTokens, Span, scoring_tokens, text_tokens
from codetune.model.likelihood import mean_nll
from codetune.project.sections import Scoring
from codetune.records import Example, Refusal, Score

Context = Literal["nll_conditional", "nll_unconditional", "nll_empty", "nll_shuffled"]  # columns of a score
CONTEXTS: tuple[Context, ...] = get_args(Context)
COMPARED: tuple[Context, Context] = ("nll_conditional", "nll_unconditional")  # token by token, where asked for


class Scorer(Protocol):
    @property
    def window(self) -> int:
        """The model's context window in tokens."""
        ...

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        """Mean negative log-likelihood of each span's predicted tokens, in nats per token. None where the span does not
        fit into memory even when it is alone in its batch."""
        ...

    def token_nll(self, spans: Sequence[Span]) -> list[torch.Tensor | None]:
        """The same token by token: the nats of each predicted token of each span."""
        ...


@dataclass(frozen=True, slots=True)
class ScoringPasses:
    """The passes that a row still needs, over the same answer tokens, and the score that it has already."""

    example: Example
    tokens: ScoringTokens
    spans: Mapping[Context, Span]
    known: Score | None
    shuffled_with: str | None  # the id of the row whose instruction the shuffled pass has
    by_token: bool  # the differences of the tokens between the first two passes are kept


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a pass: the mean over the answer tokens, in nats, and where it is asked for each token's own."""

    nll: float | None  # None where it does not fit into memory
    tokens: torch.Tensor | None = None


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    settings: Scoring,
    partners: Mapping[str, Example],
    known: Mapping[str, Score],
    *,
    by_token: bool = False,
) -> list[ScoringPasses | Refusal]:
    """The passes of each example, or the reason why it cannot be scored. `partners` has, by the id of a row of the
    sample, the row whose instruction its answer is scored after as well; `known` has earlier scores by id, whose passes
    are not made again, unless their tokens are asked for (`by_token`) and were not kept. Needs no network."""
    max_length, mark = min(settings.max_length, window), control_tokens(tokenizer).mark
    prompts = [fill_prompt(settings.prompt, mark(example.instruction)) for example in examples]
    tokenized = scoring_tokens(tokenizer, prompts, examples, max_length)
    others = _other_prompts(examples, tokenizer, settings, partners)
    return [
        tokens
        if isinstance(tokens, Refusal)
        else _passes(example, tokens, other, max_length, partners, known.get(example.id), by_token)
        for example, tokens, other in zip(examples, tokenized, others, strict=True)
    ]


def score_tokens(tokenized: Sequence[ScoringPasses | Refusal], scorer: Scorer) -> list[Score | Refusal]:
    """A score or a refusal for each example, in order; all passes of all examples are one call of the scorer."""
    rows = [row for row in tokenized if isinstance(row, ScoringPasses)]
    spans = [span for row in rows for span in row.spans.values()]
    measured = iter(_measure(scorer, spans, any(row.by_token for row in rows)))
    return [
        row if isinstance(row, Refusal) else _score(row, {context: next(measured) for context in row.spans})
        for row in tokenized
    ]


def _measure(scorer: Scorer, spans: Sequence[Span], by_token: bool) -> list[Measured]:
    if not by_token:
        return [Measured(nll) for nll in scorer.nll(spans)]
    return [Measured(None) if own is None else Measured(mean_nll(own), own) for own in scorer.token_nll(spans)]


def fill_prompt(template: str, instruction: str) -> str:
    """`template` with `{instruction}` replaced; other braces are plain text.

    >>> fill_prompt("Q: {instruction} {}", "x = {y}")
    'Q: x = {y} {}'
    """
    return template.replace("{instruction}", instruction)


def ifd(nll_conditional: float, nll_unconditional: float) -> float | None:
    """PPL(answer | instruction) / PPL(answer) from the two mean negative log-likelihoods in nats per token.

    None where the ratio is not a positive finite number in double precision.

    >>> round(ifd(0.5, 1.0), 4)  # exp(0.5) / exp(1.0)
    0.6065
    """
    difference = nll_conditional - nll_unconditional
    if not math.isfinite(difference) or difference > 700:  # exp(710) overflows a double
        return None
    return math.exp(difference) or None


def _other_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    settings: Scoring,
    partners: Mapping[str, Example],
) -> list[dict[Context, list[int]]]:
    """For each example the tokens of the prompts without its own instruction, by the column that they are for."""
    if not settings.empty_prompt:
        return [{} for _ in examples]
    instructions = ["", *(partners[example.id].instruction for example in examples if example.id in partners)]
    mark = control_tokens(tokenizer).mark
    empty, *shuffled = text_tokens(tokenizer, [fill_prompt(settings.prompt, mark(text)) for text in instructions])
    remaining = iter(shuffled)
    prompts: list[dict[Context, list[int] | None]] = [
        {"nll_empty": empty, "nll_shuffled": next(remaining)} if example.id in partners else {"nll_empty": empty}
        for example in examples
    ]
    return [{context: tokens for context, tokens in found.items() if tokens is not None} for found in prompts]


def _passes(
    example: Example,
    tokens: ScoringTokens,
    others: Mapping[Context, Sequence[int]],
    max_length: int,
    partners: Mapping[str, Example],
    before: Score | None,
    by_token: bool,
) -> ScoringPasses:
    spans: dict[Context, Span] = {"nll_conditional": tokens.conditional, "nll_unconditional": tokens.unconditional}
    spans |= {context: tokens.after(prompt, max_length) for context, prompt in others.items()}
    by_token = by_token and (before is None or before.token_differences is None)
    known = _likelihoods(before).keys() - (COMPARED if by_token else ())
    missing = {context: span for context, span in spans.items() if context not in known}
    shuffled_with = None if before is None else before.shuffled_with
    if "nll_shuffled" in missing:
        shuffled_with = partners[example.id].id
    return ScoringPasses(example, tokens, missing, before, shuffled_with, by_token)


def _score(row: ScoringPasses, measured: Mapping[Context, Measured]) -> Score | Refusal:
    # Another row's long instruction is no reason to lose this row.
    fitting = {context: one.nll for context, one in measured.items() if one.nll is not None}
    if measured.keys() - fitting.keys() - {"nll_shuffled"}:
        return Refusal(row.example.id, "out of memory, alone in its batch", row.example.at)
    if not all(map(math.isfinite, fitting.values())):
        return Refusal(row.example.id, "likelihood is not a finite number", row.example.at)
    found = fitting | _likelihoods(row.known)  # what is known stays, also if its pass was made again for the tokens
    conditional, empty, shuffled = found["nll_conditional"], found.get("nll_empty"), found.get("nll_shuffled")
    difficulty = ifd(conditional, found["nll_unconditional"])
    if difficulty is None:
        return Refusal(row.example.id, "difficulty is not a finite number above 0", row.example.at)
    return Score(
        id=row.example.id,
        ifd=difficulty,
        pmi=None if empty is None else empty - conditional,
        nll_conditional=conditional,
        nll_unconditional=found["nll_unconditional"],
        nll_empty=empty,
        answer_tokens=row.tokens.scored,
        truncated=row.tokens.truncated,
        nll_shuffled=shuffled,
        shuffled_with=None if shuffled is None else row.shuffled_with,
        token_differences=_token_differences(row, measured),
    )


def _token_differences(row: ScoringPasses, measured: Mapping[Context, Measured]) -> bytes | None:
    if not row.by_token:
        return None if row.known is None else row.known.token_differences
    with_prompt, alone = (measured[context].tokens for context in COMPARED)
    assert with_prompt is not None
    assert alone is not None
    return (with_prompt - alone).numpy().astype("<f4").tobytes()


def _likelihoods(score: Score | None) -> dict[Context, float]:
    """The likelihoods that a score has."""
    if score is None:
        return {}
    return {context: value for context in CONTEXTS if (value := getattr(score, context)) is not None}
