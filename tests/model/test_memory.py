"""What a process does with the memory of tensors that are gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from codetune.launch.devices import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from codetune.launch.devices import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.ones(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_tensors_that_come_and_go_take_their_pages_once() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)

    assert faults("given back") > 3 * faults("kept") > 0
    keep_freed_memory()  # more than once does no harm
