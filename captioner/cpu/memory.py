"""Settings of the C library's memory allocator.

By default GNU's malloc maps new memory for every large tensor, and the kernel clears its pages. Captioning and training
on a CPU allocate the same tensors again and again, and can spend more than a third of their time on that.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1
DYNAMIC_LIMIT = 31 * 2**20
"""Bytes of the largest block whose size GNU's malloc adapts to; its own limit is 32 MiB."""


def keep_freed_memory() -> None:
    """Reuse large blocks of memory in this process instead of returning each to the kernel when it is freed.

    The process then keeps a little more than its peak memory. This only affects GNU's C library; see mallopt(3).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def reuse_blocks() -> None:
    """Reuse blocks of up to 31 MiB: a mild `keep_freed_memory` for use as a library, which changes no setting.

    GNU's malloc adapts to the largest block that has been freed (M_MMAP_THRESHOLD in mallopt(3)), so this allocates and
    frees one. The block takes no memory, because nothing is written to it.
    """
    bytes(DYNAMIC_LIMIT)
