"""What a worker says of its machine: whoever scales a model wants to know how many workers it has room for."""

import os
import resource
import sys
from collections.abc import Mapping

CORES_VARIABLE, MEMORY_VARIABLE = "SERVER_CORES", "SERVER_MEMORY_BYTES"
"""Set by the server that started this worker, which has counted what it and its workers may use."""


def machine(environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, int]]:
    """`machine`: the cores and the memory in bytes that the workers may use together, and this worker's largest
    resident memory until now. Empty if no server has said what there is: TorchServe alone does not."""
    cores, memory = (environment.get(name, "") for name in (CORES_VARIABLE, MEMORY_VARIABLE))
    if not (cores.isdecimal() and memory.isdecimal()):
        return {}
    return {"machine": {"cores": int(cores), "memory_bytes": int(memory), "worker_bytes": _worker_bytes()}}


def _worker_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
