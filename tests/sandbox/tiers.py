"""Parameters for tests that hold in every tier; tiers that do not work on this machine are skipped, with the reason."""

from __future__ import annotations

from functools import cache

import pytest

from codetune.sandbox.probe import find_failure
from codetune.sandbox.tiers import TIERS

find_failure_once = cache(find_failure)


def each_tier(*, and_none: bool) -> pytest.MarkDecorator:
    """`and_none`: the tier `none` as well, for what holds without a sandbox."""
    return pytest.mark.parametrize(
        "tier", [_parameter(name) for name, tier in TIERS.items() if tier.confines or and_none]
    )


def _parameter(name: str) -> object:
    failure = find_failure_once(name) if TIERS[name].confines else None
    return pytest.param(name, marks=[pytest.mark.skip(reason=failure)] if failure else [])
