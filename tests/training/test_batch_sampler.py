"""Who trains on what in which step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.data.packing import MicroBatchPlan
from codetune.data.token_cache import TokenCache, write_token_cache
from codetune.data.tokens import TrainingTokens
from codetune.project.sections import Training
from codetune.training.batch_sampler import RankDataset, StepSampler, samples_per_step, total_steps

MODES = ["max_length", "dynamic_pad", "paper_pack", "dynamic_pack"]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9), st.integers(0, 4))
def test_every_row_comes_once_an_epoch_and_only_the_last_step_is_smaller(
    rows: int, size: int, seed: int, epoch: int
) -> None:
    plan = StepSampler(rows, size, seed)
    plan.set_epoch(epoch)
    steps = list(plan)
    assert sorted(row for step in steps for row in step) == list(range(rows))
    assert len(steps) == len(plan)
    assert all(len(step) == size for step in steps[:-1])
    assert len(steps[-1]) <= size


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, size: int = 4) -> list[int]:
        plan = StepSampler(30, size, seed)
        plan.set_epoch(epoch)
        return [row for step in plan for row in step]

    assert order(1, 0) == order(1, 0, size=7)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.fixture(scope="module")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    """37 rows of 1 to 9 tokens, each of its own number, so that a sample tells which row it is."""
    rows = (
        (f"{row:016d}", TrainingTokens((row,) * (row * 5 % 9 + 1), (True,) * (row * 5 % 9 + 1), False, 0))
        for row in range(37)
    )
    return write_token_cache(rows, tmp_path_factory.mktemp("token_cache") / "tokens")


def steps_of(
    token_cache: TokenCache, mode: str, per_device: int, processes: int, sort: bool
) -> list[list[list[list[int]]]]:
    """Rows by step, process and micro-batch, of two epochs."""
    plan = StepSampler(len(token_cache), 12, seed=3)
    shares = [
        RankDataset(token_cache, MicroBatchPlan(mode, per_device, processes, sort, 64), rank)
        for rank in range(processes)
    ]
    steps = []
    for epoch in (0, 1):
        plan.set_epoch(epoch)
        for step in plan:
            dealt = [share.__getitems__(step) for share in shares]
            steps.append([[[int(one.id) for one in batch] for batch in batches] for batches in dealt])
    return steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sort", [False, True])
def test_a_step_has_the_same_samples_whatever_the_mode_the_processes_and_the_accumulation(
    token_cache: TokenCache, mode: str, sort: bool
) -> None:
    def samples(steps: list[list[list[list[int]]]]) -> list[list[int]]:
        return [sorted(row for batches in step for batch in batches for row in batch) for step in steps]

    expected = samples(steps_of(token_cache, "max_length", 12, 1, sort=False))
    assert [len(step) for step in expected] == [12, 12, 12, 1] * 2
    for processes in (1, 2, 3, 4):
        for per_device in (1, 2, 3, 12):
            steps = steps_of(token_cache, mode, per_device, processes, sort)
            assert samples(steps) == expected
            counts = [{len(batches) for batches in step} for step in steps]
            assert all(len(count) == 1 for count in counts)  # as many micro-batches in each process


def test_a_sample_comes_with_its_own_tokens(token_cache: TokenCache) -> None:
    (batch,) = RankDataset(token_cache, MicroBatchPlan("dynamic_pad", 5, 1, False, 64), 0).__getitems__([30, 2, 17])
    assert [(sample.id, set(sample.tokens.tolist())) for sample in batch] == [
        (f"{row:016d}", {row}) for row in (30, 2, 17)
    ]


def test_the_global_batch_is_per_device_times_accumulation_times_processes_or_as_told() -> None:
    settings = Training(per_device_batch_size=16, gradient_accumulation_steps=4)
    assert samples_per_step(settings, 8) == 512
    assert samples_per_step(settings.model_copy(update={"global_batch_size": 64}), 8) == 64


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(3, None, 9), (3, 4, 4), (1, 100, 3)])
def test_max_steps_shortens_and_never_lengthens(epochs: int, max_steps: int | None, steps: int) -> None:
    settings = Training(epochs=epochs, max_steps=max_steps, global_batch_size=8)
    assert total_steps(settings, 20, 1) == steps
