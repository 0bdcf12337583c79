"""The input files, and the shards into which they are divided.

A shard is the unit of work: one worker reads its rows, classifies them, and writes them as one output file. The number
of a file's shards depends on the file alone, so that a run that is started again has the same shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from bulk.columns import Cells
from handler.errors import RequestError

MIN_SHARD_BYTES: Final = 256 << 10
"""Size of a small file's shards, before their number is rounded: about 2,000 tweets, a second of work for a core."""

MAX_SHARD_BYTES: Final = 8 << 20
"""Size of a large file's shards: about 56,000 tweets, 40 s of work for a core. A worker holds one in memory."""

SHARDS_OF_A_FILE: Final = 128
"""Number of shards of a file of medium size. With fewer, some cores would wait for the last shards of others."""

SHARDS_FACTOR: Final = 8
"""From this number on, the number of shards is a multiple of it, so that 2, 4 or 8 cores get equal shares."""


@dataclass(frozen=True)
class Source:
    """An input file."""

    path: str
    name: str
    """Name in the names of the output files; unique among all input files."""

    kind: str
    """Format: a key of `bulk.tables.TABLES`."""

    size: int
    """Size in bytes."""

    shards: int
    """Number of shards."""


@dataclass(frozen=True)
class Shard:
    """A part of an input file."""

    source: Source
    index: int
    begin: int
    end: int
    """Begin and end: rows of Parquet, bytes of the other formats."""

    def output(self, prefix: str, ending: str) -> str:
        """Return the path of the shard's output file."""
        return f"{prefix}-{self.source.name}-{self.index:05}-of-{self.source.shards:05}{ending}"


@dataclass(frozen=True)
class Rows:
    """The rows of a shard."""

    shard: Shard
    rows: Any
    """The rows in the form of their format: a sequence, or an Arrow table."""

    texts: Sequence[str | RequestError]
    """The text of each row, or the row's error."""

    layout: Any = None
    """The header and the line end of CSV; None for other formats."""


@dataclass(frozen=True)
class ScoredRows:
    """The rows of a shard with their results."""

    rows: Rows
    cells: Sequence[Cells]
    """For each row the cells that are added to it."""


def shard_count(size: int) -> int:
    """Return the number of shards of a file of `size` bytes."""
    shard_bytes = min(max(-(-size // SHARDS_OF_A_FILE), MIN_SHARD_BYTES), MAX_SHARD_BYTES)
    count = max(1, -(-size // shard_bytes))
    return count if count < SHARDS_FACTOR else -(-count // SHARDS_FACTOR) * SHARDS_FACTOR


def equal_parts(size: int, parts: int) -> list[tuple[int, int]]:
    """Divide `size` bytes or rows into consecutive parts of equal size."""
    bounds = [size * part // parts for part in range(parts + 1)]
    return list(pairwise(bounds))
