"""The class of an error decides the exit status of the command."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from codetune import errors


@pytest.mark.parametrize("kind", ["InputError", "UsageError", "ProjectError", "DataError", "ModelError", "StaleError"])
def test_wrong_input_ends_with_status_2(kind: str) -> None:
    assert getattr(errors, kind).exit_status == 2


@pytest.mark.parametrize("kind", ["CodetuneError", "BusyError"])
def test_work_that_failed_ends_with_status_1(kind: str) -> None:
    assert getattr(errors, kind).exit_status == 1


@pytest.mark.parametrize(("number", "status"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 1)])
def test_a_directory_that_cannot_be_written_to_is_wrong_input_unless_the_disk_is_full(
    number: int, status: int, tmp_path: Path
) -> None:
    why = OSError(number, "the reason", str(tmp_path / "file"))
    error = errors.unusable_directory(tmp_path, why, "Name another")
    assert error.exit_status == status
    assert f"{tmp_path / 'file'}" in str(error)
    assert "the reason" in str(error)


def test_a_name_that_no_file_can_have_is_wrong_input() -> None:
    error = errors.writing_failed(OSError(errno.ENAMETOOLONG, "too long", "aaa"))
    assert isinstance(error, errors.InputError)
