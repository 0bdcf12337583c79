"""The worker processes on this machine.

An import of their packages takes seconds. For local input files, they start before this process imports its own.
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from bulk.local_files import local_files
from bulk.shards import shard_count

LOCAL_RUNNERS: Final = (None, "DirectRunner", "FnApiRunner")
PROCESSES: Final = "multi_processing"

Worker = subprocess.Popen[bytes]


@dataclass(frozen=True)
class LocalOptions:
    """Beam's options for a run on this machine. Without them, a process for each core is used."""

    workers: int
    """Maximum number of workers; 0 for one for each core."""

    mode: str
    """`multi_processing`, or one of Beam's modes without processes."""

    @classmethod
    def parse(cls, flags: Sequence[str]) -> "LocalOptions | None":
        """Parse the command line's part for Beam; return None for a run on other machines, or if an option is invalid.

        Args:
            flags: the options of Beam.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--runner")
        parser.add_argument("--direct_num_workers", type=int, default=0)
        parser.add_argument("--direct_running_mode", default=PROCESSES)
        try:
            options, _ = parser.parse_known_args([*flags])
        except argparse.ArgumentError:
            return None
        if options.runner not in LOCAL_RUNNERS:
            return None
        return cls(options.direct_num_workers, options.direct_running_mode)

    def workers_for(self, shards: int) -> int:
        """Return the number of workers for a number of shards: a worker without a shard would only take time."""
        return min(self.workers or _cores(), shards)

    def expected_processes(self, pattern: str) -> int:
        """Return the number of processes that the files of a local pattern will probably need, from their sizes."""
        if self.mode != PROCESSES or self.workers < 0:
            return 0
        most = self.workers or _cores()
        shards = 0
        with suppress(OSError):  # reported when the files are read
            for file in local_files(pattern):
                shards += shard_count(file.size)
                if shards >= most:
                    return most
        return shards


class Workers:
    """Processes of `bulk.worker` that wait for their work."""

    def __init__(self) -> None:
        self._waiting: deque[Worker] = deque()

    def provide(self, count: int) -> None:
        """Start or end processes, so that `count` of them wait.

        Raises:
            OSError: a process cannot be started.
        """
        while len(self._waiting) > count:
            worker = self._waiting.pop()
            worker.kill()
            worker.communicate()
        while len(self._waiting) < count:
            self._waiting.append(_started())

    def take(self) -> Worker:
        """Return a process that waits. This object no longer manages it."""
        return self._waiting.popleft()


def begin(worker: Worker, environment: Mapping[str, str]) -> None:
    """Let a process that waits begin its work.

    Args:
        worker: the process. If it has ended meanwhile, nothing happens.
        environment: the environment variables of Beam's worker.
    """
    assert worker.stdin is not None
    try:
        worker.stdin.write(json.dumps(dict(environment)).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        with suppress(BrokenPipeError):  # it would try to write again
            worker.stdin.close()


def _started() -> Worker:
    with _signals_blocked():
        return subprocess.Popen([sys.executable, "-m", "bulk.worker"], stdin=subprocess.PIPE)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM, which can reach all processes of a group. A child process inherits this, and keeps it.

    The starting process reports the signal. The workers end when it has ended.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else multiprocessing.cpu_count()
