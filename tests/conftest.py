"""Fixtures for every room, and the strictness that production does without: one thread, deterministic algorithms."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Commands that the tests interrupt inherit what this process does with the signal: a shell that runs the tests in the
# background has it ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported anywhere: the same surroundings as in production, and no network.
os.environ["HF_HUB_OFFLINE"] = "1"

from codetune.launch.environment import prepare_process

prepare_process()

import pytest
import torch
from hypothesis import settings

from tests.forks import Forks

# How long an example takes says more about the machine than about the code.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")

PROJECT = Path(__file__).resolve().parents[1]
# Files that take longest are begun first, so that no process works on one when all others have nothing left to do.
LONGEST = (
    "demo/test_run.py",
    "training/test_sharing.py",
    "benchmark/test_real.py",
    "test_kills.py",
    "training/test_ranks.py",
    "stages/test_generate.py",
    "training/test_train.py",
    "test_cli.py",
    "stages/test_row_stage.py",
    "test_real.py",
    "test_scale.py",
    "test_workflow.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {PROJECT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def _strict_torch() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["CODETUNE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data: CODETUNE_TEST_DATA, else ../shared/data beside the project."""
    named = os.environ.get("CODETUNE_TEST_DATA")
    data = Path(named) if named else PROJECT.parent / "shared" / "data"
    if not data.is_dir():
        if os.environ.get("CODETUNE_REQUIRE_TEST_DATA"):
            pytest.fail(f"{data} is missing, and CODETUNE_REQUIRE_TEST_DATA is set", pytrace=False)
        pytest.skip(f"no real data at {data}; name it with CODETUNE_TEST_DATA")
    return data
