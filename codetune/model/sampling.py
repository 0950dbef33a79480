"""Logits and a random number -> a token: temperature and nucleus (Holtzman et al. 2019, arXiv 1904.09751).

The random number of a token follows from the sample's own stream and the token's place in it, by a hash: there is no
state, so neither batch size nor order nor a restart changes what a sample becomes (in float32; a number that falls
within rounding of a boundary aside).

Axes: B rows in the batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def uniform(stream: str, place: int) -> float:
    """In [0, 1), with 40 bits.

    >>> uniform("42/Own/0/0", 0) == uniform("42/Own/0/0", 0) != uniform("42/Own/0/0", 1)
    True
    """
    digest = hashlib.blake2b(f"{place}\n{stream}".encode(), digest_size=5).digest()
    return int.from_bytes(digest, "big") / 2**40


def stream_seed(stream: str) -> int:
    """For engines that draw by themselves: 63 bits."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "big") >> 1


def sample(logits: torch.Tensor, temperature: float, top_p: float, numbers: Sequence[float]) -> torch.Tensor:
    """The token of each row [B] for logits [B, V], by inversion of the cumulative distribution.

    Tokens stand in the order of their ids: sorted by probability, two that are nearly equal could change places with
    the rounding of a batch, and a whole token's worth of random numbers with them."""
    shares = torch.softmax(logits.double() / temperature, dim=-1)  # [B, V]
    if top_p < 1:
        shares = shares.where(shares >= _least_share(shares, top_p), 0.0)
    reached = shares.cumsum(-1)  # [B, V]
    drawn = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None] * reached[:, -1:]  # [B, 1]
    return torch.searchsorted(reached, drawn, right=True)[:, 0]  # the first token whose sum is above


def _least_share(shares: torch.Tensor, top_p: float) -> torch.Tensor:
    """The share of the last token of the nucleus [B, 1]: the fewest likeliest tokens that make up `top_p` together.
    Tokens of exactly that share all belong to it."""
    ordered = shares.sort(dim=-1, descending=True).values
    last = (ordered.cumsum(-1) < top_p).sum(-1, keepdim=True).clamp(max=shares.shape[-1] - 1)
    return ordered.gather(-1, last)
