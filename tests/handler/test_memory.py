"""The allocator's settings: freed large blocks return to the system, but the memory for a batch of tweets stays."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's is left as it is"
)

KEPT = """
import sys
import psutil
from handler.memory import give_freed_memory_back

if sys.argv[1] == "given back":
    give_freed_memory_back(4, 1)
rss = psutil.Process().memory_info
bytearray(b"x") * (5 << 20)  # by default, glibc now keeps blocks of this size in its heaps
before = rss().rss
large, small = [], []
for _ in range(10):
    large.append(bytearray(b"x") * (5 << 20))
    small.append(bytearray(b"x") * (100 << 10))
large.clear()
print((rss().rss - before) >> 20)
"""

TAKEN = """
import resource
import sys
from pathlib import Path
from handler.classifier import TextClassifier
from handler.memory import give_freed_memory_back
from handler.service import HEAP_END_MIB, LARGE_BLOCK_MIB

give_freed_memory_back(LARGE_BLOCK_MIB, HEAP_END_MIB)
classifier = TextClassifier.load_archived(Path(sys.argv[1]), threads=1)
texts = [f"flight {number} was the best of them all, and we will tell everybody we know! " * 2 for number in range(32)]
for _ in range(10):  # the heap reaches its final size
    classifier.predict(texts)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    classifier.predict(texts)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(("way", "least", "most"), [("default", 40, 60), ("given back", 0, 10)])
def test_freed_blocks_return_to_the_system(way: str, least: int, most: int) -> None:
    assert least <= _printed(KEPT, way) <= most


def test_a_batch_of_tweets_allocates_no_new_memory(unpacked: Path) -> None:
    assert (
        _printed(TAKEN, str(unpacked)) < 5_000
    )  # page faults in ten batches; over 40,000 if the memory were allocated again


def _printed(program: str, argument: str) -> int:
    command = [sys.executable, "-c", program, argument]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout)
