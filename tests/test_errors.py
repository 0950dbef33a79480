"""The class of an error decides the exit status of the command."""

from __future__ import annotations

import pytest

from codetune import errors


@pytest.mark.parametrize("kind", ["InputError", "UsageError", "ProjectError", "DataError", "ModelError", "StaleError"])
def test_wrong_input_ends_with_status_2(kind: str) -> None:
    assert getattr(errors, kind).exit_status == 2


@pytest.mark.parametrize("kind", ["CodetuneError", "BusyError"])
def test_work_that_failed_ends_with_status_1(kind: str) -> None:
    assert getattr(errors, kind).exit_status == 1
