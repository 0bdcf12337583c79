"""The number of cores that this server may use, counted as Java counts them: TorchServe starts a worker for each."""

import contextlib
import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = CGROUPS) -> int:
    """The number of cores that this process may use.

    It is the smaller of two numbers: the cores in the process's affinity mask, and the container's CPU quota in cores,
    rounded up.

    Args:
        cgroups: the folder where Linux shows the limits of the container (cgroups(7)). Version 2 has `cpu.max`, version
            1 has `cpu/cpu.cfs_quota_us` and `cpu/cpu.cfs_period_us`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no limit: no file, the word `max`, or -1
            quota, period = map(int, " ".join((cgroups / name).read_text() for name in names).split())
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return cores
