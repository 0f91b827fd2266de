import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from xsam_model.runtime.host_memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def touch():
    return torch.ones(10_000_000).sum() + torch.ones(3_000_000).sum()

for _ in range(3):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is known")
def test_large_tensors_take_the_pages_of_those_before_them():
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout
        )
        for how in ("keep", "default")
    }
    # Ten times 52 MB are 127,000 pages of 4 kB.
    assert faults["default"] > 40_000
    assert faults["keep"] < faults["default"] / 2
