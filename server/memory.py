"""The memory that this server may use, and the number of workers that fit into it."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from server.cores import CGROUPS

WORKER_BYTES = 410_000_000
"""The peak memory usage of a worker without its model's files, for batches of the longest texts
(docs/guides/sizing.md)."""
RESERVED_BYTES = 951_000_000
"""The peak memory usage of Java, the door and this program together (docs/guides/sizing.md)."""


def available(cgroups: Path = CGROUPS) -> int:
    """The machine's memory or the container's memory limit, whichever is smaller, in bytes.

    Args:
        cgroups: the folder where Linux shows the limits of the container (cgroups(7)). Version 2 has `memory.max`,
            version 1 has `memory/memory.limit_in_bytes`.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no limit: no file, or the word `max`
            memory_bytes = min(memory_bytes, int((cgroups / name).read_text()))
    return memory_bytes


def workers(model_bytes: Sequence[int], cores: int, memory_bytes: int) -> int:
    """The number of workers for each model: one per core, or fewer if memory is short; at least 1.

    Args:
        model_bytes: the size of each model's files.
        cores: the number of cores that the server may use.
        memory_bytes: the memory that the server may use.
    """
    one_worker_each_bytes = sum(WORKER_BYTES + size for size in model_bytes)
    return max(1, min(cores, (memory_bytes - RESERVED_BYTES) // one_worker_each_bytes))
