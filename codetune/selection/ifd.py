"""Instruction-following difficulty (Li et al. 2024, arXiv 2308.12032, sec. 2.2): how little the question helps to
predict the answer. Low is easy; from 1 on the question does not help at all, a mismatched pair. Says nothing about
whether the answer is right."""

from __future__ import annotations

import math


def ifd(nll_conditional: float, nll_unconditional: float) -> float | None:
    """PPL(C|I) / PPL(C) from the two mean negative log-likelihoods in nats; None where it is no positive number.

    >>> round(ifd(0.5, 1.0), 4)  # exp(0.5) / exp(1.0)
    0.6065
    """
    difference = nll_conditional - nll_unconditional
    if not math.isfinite(difference) or difference > 700:  # exp(710) is no double any more
        return None
    return math.exp(difference) or None
