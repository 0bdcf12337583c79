"""When freed memory goes back to the system, as glibc's allocator has it; another allocator is left as it is."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_MEBIBYTE = 1 << 20


def give_freed_memory_back(blocks: int, end: int) -> None:
    """Let glibc take large blocks from the system and give them back when they are freed.

    By default it raises the size from which it does so up to 32 MB, keeps smaller blocks in heaps, and the heaps
    fragment.

    Args:
        blocks: of how many MiB and more.
        end: how many MiB of free memory may stay at the heap's end.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, blocks * _MEBIBYTE)
        libc.mallopt(_M_TRIM_THRESHOLD, end * _MEBIBYTE)
