"""Fixtures of the training room."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _libraries_are_not_collected() -> Iterator[None]:
    """accelerate collects garbage at the begin of each training, which takes longer than a tiny training when it visits
    the objects of all libraries."""
    gc.freeze()
    yield
    gc.unfreeze()
