"""What a benchmark says of the machine that it ran on, and other work for that machine to do meanwhile."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

MATTER = r"avx2|avx512(f|_vnni|_bf16|_fp16)|avx_vnni|amx_\w+|asimd|asimddp|sve2?|bf16|i8mm"
"""Instruction sets that matrix products depend on."""
CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables by which torch, oneDNN and MKL use fewer instruction sets than the processor has."""
BUSY_LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1000000): pass"
"""It ends with the process that started it, if that is killed."""


def machine() -> dict[str, Any]:
    """The processor's name, the cores that this process may use, and instruction sets: those that there are, the widest
    that torch uses, and caps in the environment."""
    path = Path("/proc/cpuinfo")
    fields = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", path.read_text(), re.MULTILINE)) if path.exists() else {}
    flags = fields.get("flags") or fields.get("Features") or ""
    return {
        "processor": fields.get("model name") or platform.processor(),
        "cores": len(cores()),
        "threads": torch.get_num_threads(),
        "instruction_sets": [flag for flag in flags.split() if re.fullmatch(MATTER, flag)],
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
    } | {name: os.environ[name] for name in CAPS if name in os.environ}


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextmanager
def busy_cores() -> Iterator[None]:
    """Other work in this block: a process for each core that does nothing but run."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", BUSY_LOOP]) for _ in cores()]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
