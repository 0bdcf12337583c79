"""Tests of `server.memory`: the memory under a container's limits, and the number of workers that fit into it."""

import os
import re
from pathlib import Path

import pytest

from server import memory
from tests.k8s.rules import MODEL_BYTES
from tests.paths import ROOT

ALL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ALL),
        ({"memory.max": "max\n"}, ALL),
        ({"memory.max": "1000000\n"}, 1_000_000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, ALL),
        ({"memory/memory.limit_in_bytes": "1000000\n"}, 1_000_000),
    ],
)
def test_the_limit_of_a_container_applies(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert memory.available(tmp_path) == expected


@pytest.mark.parametrize(
    ("models", "cores", "memory_bytes", "expected"),
    [
        (1, 2, 24_000_000_000, 2),
        (1, 2, 2 << 30, 2),  # k8s/base
        (1, 1, 1400 << 20, 1),  # k8s/overlays/local
        (2, 2, 2 << 30, 1),
        (2, 2, 3 << 30, 2),
        (5, 16, 64_000_000_000, 16),
        (5, 16, 16_000_000_000, 7),
        (5, 2, 1_000_000_000, 1),
    ],
)
def test_each_model_has_as_many_workers_as_cores_and_memory_allow(
    models: int, cores: int, memory_bytes: int, expected: int
) -> None:
    assert memory.workers([10_000_000] * models, cores, memory_bytes) == expected


def test_the_memory_figures_are_those_of_the_documented_table() -> None:
    page = (ROOT / "docs" / "guides" / "sizing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([0-9]+) \|", page, re.MULTILINE))
    assert int(rows["two workers"]) * 1_000_000 == 2 * (memory.WORKER_BYTES + MODEL_BYTES)
    parts = ["Java's heap", "Java's buffers outside the heap", "the rest of Java", "HAProxy"]
    rest = sum(int(rows[part]) for part in [*parts, "the server, and the workers' parent processes"])
    assert rest * 1_000_000 == memory.RESERVED_BYTES
    assert "-Xmx256m" in (ROOT / "config.properties").read_text(encoding="utf-8")
