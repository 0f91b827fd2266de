import platform
import resource

import pytest
import torch

from tests.support.fork_server import fork_server
from xsam_model.runtime.host_memory import keep_freed_memory


def touch():
    return torch.ones(10_000_000).sum() + torch.ones(3_000_000).sum()


def count_faults(how, told):
    torch.set_num_threads(1)
    if how == "keep":
        assert keep_freed_memory()
    for _ in range(3):
        touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        touch()
    told.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is known")
def test_large_tensors_take_the_pages_of_those_before_them():
    faults = {}
    with fork_server("xsam_model.runtime.host_memory", "torch") as processes:
        for how in ("keep", "default"):
            told, ours = processes.Pipe(duplex=False)
            process = processes.Process(target=count_faults, args=(how, ours))
            process.start()
            ours.close()
            faults[how] = told.recv()
            process.join()
    # Ten times 52 MB are 127,000 pages of 4 kB.
    assert faults["default"] > 40_000
    assert faults["keep"] < faults["default"] / 2
