"""How the C library hands out memory.

By default GNU's maps a large tensor anew each time, and the kernel clears its pages: in captioning and in training on a
CPU, which make the same tensors over and over, that can take a third of the time and more.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1
DYNAMIC_LIMIT = 31 * 2**20
"""Bytes of a block from whose size GNU's C library still learns; the limit itself is 32 MiB."""


def keep_freed_memory() -> None:
    """Have this process use large blocks of memory again, instead of handing each back to the kernel when it is freed.

    The price is that the process keeps what it needed at most, and some more. Other C libraries are left alone. See
    mallopt(3).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def reuse_blocks() -> None:
    """Have this process use blocks of up to 31 MiB again, and hand back no less than twice that: `keep_freed_memory`
    for a library, which changes no setting.

    GNU's C library does so by itself once a block that large has been freed: see M_MMAP_THRESHOLD in mallopt(3). The
    block made here for that takes no memory, since nobody writes to it.
    """
    bytes(DYNAMIC_LIMIT)
