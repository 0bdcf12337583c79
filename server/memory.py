"""How much memory this server may use, and for how many workers it has room."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from server.cores import CGROUPS

WORKER_BYTES = 410_000_000
"""Largest memory of a worker without its model's files, with batches of the longest texts (docs/guides/sizing.md)."""
REST_BYTES = 951_000_000
"""Largest memory of Java, HAProxy and this program together (docs/guides/sizing.md)."""


def available(cgroups: Path = CGROUPS) -> int:
    """The machine's memory in bytes, or the limit of the container, whichever is less.

    Args:
        cgroups: where Linux shows the limits of the container (cgroups(7)); version 2 has `memory.max`, version 1 has
            `memory/memory.limit_in_bytes`.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no limit: no file, or the word `max`
            found = min(found, int((cgroups / name).read_text()))
    return found


def workers(model_bytes: Sequence[int], cores: int, memory_bytes: int) -> int:
    """How many workers of each model there is room for: one for each core, or fewer if the memory is short; at least 1.

    Args:
        model_bytes: the size of each model's files.
    """
    of_one_each = sum(WORKER_BYTES + size for size in model_bytes)
    return max(1, min(cores, (memory_bytes - REST_BYTES) // of_one_each))
