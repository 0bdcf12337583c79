"""Settings of glibc's allocator that return freed memory to the system. Other allocators are left unchanged."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_MEBIBYTE = 1 << 20


def give_freed_memory_back(min_block_mib: int, max_heap_end_mib: int) -> None:
    """Make glibc allocate large blocks directly from the system, and return them when they are freed.

    By default, glibc raises the threshold for such blocks up to 32 MB. It keeps smaller blocks in heaps, and the heaps
    fragment.

    Args:
        min_block_mib: minimum size of such a block.
        max_heap_end_mib: maximum free memory at the end of the heap.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, min_block_mib * _MEBIBYTE)
        libc.mallopt(_M_TRIM_THRESHOLD, max_heap_end_mib * _MEBIBYTE)
