"""The resources of a worker's machine, which show how many workers the machine has room for."""

import os
import resource
import sys
from collections.abc import Mapping

CORES_VARIABLE, MEMORY_VARIABLE = "SERVER_CORES", "SERVER_MEMORY_BYTES"
"""Environment variables with the cores and the memory that the server and its workers may use. The server sets them."""


def machine(environment: Mapping[str, str] = os.environ) -> dict[str, dict[str, int]]:
    """Return the entry `machine` of the model's description.

    It has the cores and the memory in bytes that all workers may use together, and this worker's peak resident memory
    in bytes. Without the server's environment variables, the result is empty: TorchServe alone does not set them.
    """
    cores, memory = (environment.get(name, "") for name in (CORES_VARIABLE, MEMORY_VARIABLE))
    if not (cores.isdecimal() and memory.isdecimal()):
        return {}
    return {"machine": {"cores": int(cores), "memory_bytes": int(memory), "worker_bytes": _worker_bytes()}}


def _worker_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
