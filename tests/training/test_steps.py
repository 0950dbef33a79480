"""Who trains on what in which step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.project import Training
from codetune.training.steps import StepPlan, samples_per_step, total_steps


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9), st.integers(0, 4))
def test_every_row_comes_once_an_epoch_and_only_the_last_step_is_smaller(
    rows: int, size: int, seed: int, epoch: int
) -> None:
    plan = StepPlan(rows, size, seed)
    plan.set_epoch(epoch)
    steps = list(plan)
    assert sorted(row for step in steps for row in step) == list(range(rows))
    assert len(steps) == len(plan)
    assert all(len(step) == size for step in steps[:-1])
    assert len(steps[-1]) <= size


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, size: int = 4) -> list[int]:
        plan = StepPlan(30, size, seed)
        plan.set_epoch(epoch)
        return [row for step in plan for row in step]

    assert order(1, 0) == order(1, 0, size=7)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_the_global_batch_is_per_device_times_accumulation_times_processes_or_as_told() -> None:
    settings = Training(per_device_batch_size=16, gradient_accumulation_steps=4)
    assert samples_per_step(settings, 8) == 512
    assert samples_per_step(settings.model_copy(update={"global_batch_size": 64}), 8) == 64


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(3, None, 9), (3, 4, 4), (1, 100, 3)])
def test_max_steps_shortens_and_never_lengthens(epochs: int, max_steps: int | None, steps: int) -> None:
    settings = Training(epochs=epochs, max_steps=max_steps, global_batch_size=8)
    assert total_steps(settings, 20, 1) == steps
