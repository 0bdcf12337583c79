"""What a worker says of its machine: the container's limits, where there are any."""

import os
from pathlib import Path

import pytest

from handler.machine import machine

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, ALL, None),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, ALL, None),
        ({"cpu.max": "50000 100000\n", "memory.max": "1048576\n"}, 1, 2**20),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL, None),
        (
            {
                "cpu/cpu.cfs_quota_us": "100000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "1048576\n",
            },
            1,
            2**20,
        ),
        ({"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, ALL, None),
    ],
    ids=["none", "no limits", "version 2", "no limits, version 1", "version 1", "unlimited, version 1"],
)
def test_a_containers_limits_count(files: dict[str, str], cores: int, memory: int | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = machine(tmp_path)
    assert found["cores"] == cores
    assert found["memory_bytes"] == (memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    assert 2**23 < found["worker_bytes"] < 2**36
