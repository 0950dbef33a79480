"""The memory that a process keeps for its tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from codetune.launch.devices import choose_device, is_out_of_memory

PAGE_FAULTS = """
import resource, torch
from codetune.launch.devices import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(60):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(1)
returned = page_faults()
keep_freed_memory()
kept = page_faults()
keep_freed_memory()  # a second call does no harm
print(returned, kept)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_the_memory_of_freed_tensors_is_kept_for_the_next_ones() -> None:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert returned > 3 * kept > 0


def test_a_full_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


def test_the_device_is_one_that_torch_has() -> None:
    assert torch.device(choose_device()).type in ("cpu", "cuda")
