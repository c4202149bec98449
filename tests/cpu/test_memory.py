"""Memory that was freed is used again."""

import subprocess
import sys

import pytest

PAGES_MAPPED_ANEW = """
import resource
import torch
from captioner.cpu.memory import keep_freed_memory, reuse_blocks

def make_tensors():
    for _ in range(20):
        tensors = [torch.ones({size}) for _ in range(5)]
        del tensors

{call}
make_tensors()  # gaps between what is kept do not fit at first
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
make_tensors()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 * 5 * 4 * {size}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is told so")
@pytest.mark.parametrize(("call", "size"), [("keep_freed_memory()", 1 << 23), ("reuse_blocks()", 1 << 20)])
def test_large_tensors_take_the_pages_of_those_before(call, size):
    shares = []
    for first in ("", call):
        command = [sys.executable, "-c", PAGES_MAPPED_ANEW.format(call=first, size=size)]
        shares.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    if shares[0] < 0.5:
        pytest.skip("this C library, or huge pages, map few pages anyway")
    assert shares[1] < 0.1
