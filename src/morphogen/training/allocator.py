"""Freed memory that stays with the process from one training step to the next.

glibc gives a large tensor's memory back to the system as soon as it is freed, so that each step pays for the same pages
again: the system has to find and to clear them. Other allocators and accelerators are left as they are.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

#: Parameters of glibc's mallopt (malloc.h) and their values in bytes: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, the most
#: that it takes, and M_TOP_PAD, how much more than it needs it asks of the system.
SETTINGS = {-3: 32 * 2**20, -1: 2**31 - 1, -2: 64 * 2**20}


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, freed memory is kept for the next allocation; afterwards what is free goes back to the system.

    The process keeps the settings: glibc has no way to read those before.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, size in SETTINGS.items():
        libc.mallopt(parameter, size)
    try:
        yield
    finally:
        libc.malloc_trim(0)
