"""Rows -> scores: instruction-following difficulty (IFD) and the two likelihoods that it is made of.

IFD (Li et al. 2024, arXiv 2308.12032, sec. 2.2) is the perplexity of the answer given the instruction, over the
perplexity of the answer alone. A low value means that the instruction helps the model to predict the answer; from 1 on
it does not help, as in a mismatched pair. IFD says nothing about whether the answer is correct. Which tokens each
perplexity is over: docs/method.md, section 1. The forward passes are in `model/likelihood.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from codetune.data.tokens import ScoringTokens, Span, scoring_tokens
from codetune.project.sections import Scoring
from codetune.records import Example, Refusal, Score


class Scorer(Protocol):
    @property
    def window(self) -> int:
        """The model's context window in tokens."""
        ...

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        """Mean negative log-likelihood of each span's predicted tokens, in nats per token. None where the span does not
        fit into memory even when it is alone in its batch."""
        ...


def tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, window: int, settings: Scoring
) -> list[ScoringTokens | Refusal]:
    """Token ids of both passes for each example, or the reason why it cannot be scored. Needs no network."""
    prompts = [fill_prompt(settings.prompt, example.instruction) for example in examples]
    return scoring_tokens(tokenizer, prompts, examples, min(settings.max_length, window))


def score_tokens(
    examples: Sequence[Example], tokenised: Sequence[ScoringTokens | Refusal], scorer: Scorer
) -> list[Score | Refusal]:
    """A score or a refusal for each example, in order; both passes of all examples are one call of the scorer."""
    scorable = [tokens for tokens in tokenised if isinstance(tokens, ScoringTokens)]
    likelihoods = scorer.nll([span for tokens in scorable for span in (tokens.conditional, tokens.unconditional)])
    pairs = zip(likelihoods[0::2], likelihoods[1::2], strict=True)
    return [
        tokens if isinstance(tokens, Refusal) else _score(example, tokens, *next(pairs))
        for example, tokens in zip(examples, tokenised, strict=True)
    ]


def fill_prompt(template: str, instruction: str) -> str:
    """`template` with `{instruction}` replaced; other braces are plain text.

    >>> fill_prompt("Q: {instruction} {}", "x = {y}")
    'Q: x = {y} {}'
    """
    return template.replace("{instruction}", instruction)


def _score(
    example: Example, tokens: ScoringTokens, conditional: float | None, unconditional: float | None
) -> Score | Refusal:
    if conditional is None or unconditional is None:
        return Refusal(example.id, "out of memory, alone in its batch", example.at)
    if not (math.isfinite(conditional) and math.isfinite(unconditional)):
        return Refusal(example.id, "likelihood is not a finite number", example.at)
    difficulty = ifd(conditional, unconditional)
    if difficulty is None:
        return Refusal(example.id, "difficulty is not a finite number above 0", example.at)
    return Score(example.id, difficulty, conditional, unconditional, tokens.scored, tokens.truncated)


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
