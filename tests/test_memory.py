"""Memory that was freed is used again."""

import subprocess
import sys

import pytest

PAGES_MAPPED_ANEW = """
import resource
import torch
from captioner.memory import keep_freed_memory

def make_tensors():
    for _ in range(20):
        torch.ones(1 << 24)

{call}
make_tensors()  # gaps between what is kept do not fit at first
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
make_tensors()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 << 26))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is told so")
def test_large_tensors_take_the_pages_of_those_before():
    shares = []
    for call in ("", "keep_freed_memory()"):
        command = [sys.executable, "-c", PAGES_MAPPED_ANEW.format(call=call)]
        shares.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    if shares[0] < 0.5:
        pytest.skip("this C library, or huge pages, map few pages anyway")
    assert shares[1] < 0.1
