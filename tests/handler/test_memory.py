"""Large blocks that were freed go back to the system, whatever small ones lie between them."""

import platform
import subprocess
import sys

import pytest

from tests.paths import ROOT

KEPT = """
import sys
import psutil
from handler.memory import give_freed_memory_back

if sys.argv[1] == "given back":
    give_freed_memory_back(4, 1)
rss = psutil.Process().memory_info
bytearray(b"x") * (5 << 20)  # by default, glibc keeps blocks of such a size from now on
before = rss().rss
large, small = [], []
for _ in range(10):
    large.append(bytearray(b"x") * (5 << 20))
    small.append(bytearray(b"x") * (100 << 10))
large.clear()
print((rss().rss - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's is left as it is")
@pytest.mark.parametrize(("way", "least", "most"), [("default", 40, 60), ("given back", 0, 10)])
def test_freed_blocks_go_back(way: str, least: int, most: int) -> None:
    command = [sys.executable, "-c", KEPT, way]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert least <= int(result.stdout) <= most
