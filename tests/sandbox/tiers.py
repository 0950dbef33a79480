"""Every way to confine programs, as parameters: those that this machine lacks are skipped, with the reason."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from codetune.sandbox.launcher import Tier
from codetune.sandbox.probe import LADDER, find_trouble


@cache
def _trouble(tier: Tier) -> str | None:
    return find_trouble(tier)


def each_tier(*more: Tier) -> Any:
    marked = [
        pytest.param(tier, marks=[pytest.mark.skip(reason=str(_trouble(tier)))] if _trouble(tier) else [])
        for tier in LADDER
    ]
    return pytest.mark.parametrize("tier", [*marked, *more])
