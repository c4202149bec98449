"""How the C library hands out memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Have this process use large blocks of memory again, instead of handing each back to the kernel when it is freed.

    By default GNU's C library maps a large tensor anew each time, and the kernel clears its pages: in captioning and in
    training on a CPU, which make the same tensors over and over, that can take a third of the time and more. The price
    is that the process keeps what it needed at most, and some more. Other C libraries are left alone. See
    mallopt(3).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
