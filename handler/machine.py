"""What a worker may use of its machine: whoever scales a model wants to know how many workers it has room for."""

import contextlib
import math
import os
import resource
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_CPU_LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
_MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Where Linux shows the limits of a container (cgroups(7)): in version 2, and in version 1."""


def machine(cgroups: Path = CGROUPS) -> dict[str, int]:
    """The cores and the memory in bytes that this container, or this machine, may use, and the largest resident memory
    of this process until now."""
    return {"cores": cores(cgroups), "memory_bytes": memory_bytes(cgroups), "worker_bytes": worker_bytes()}


def cores(cgroups: Path) -> int:
    """The cores that this process may run on, or the processor time of its container in cores, rounded up."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in _CPU_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no limit: no file, the word `max`, or -1
            quota, period = map(int, " ".join((cgroups / name).read_text() for name in names).split())
            if quota > 0:
                found = min(found, math.ceil(quota / period))
    return found


def memory_bytes(cgroups: Path) -> int:
    """The machine's memory, or its container's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int((cgroups / name).read_text()))
    return found


def worker_bytes() -> int:
    """The largest resident memory of this process until now."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
