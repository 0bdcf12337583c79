"""The server's own lines on standard output and standard error.

If nobody reads a pipe, it becomes full, and a write to it waits. A separate thread writes the lines, so a full pipe
blocks neither a drain nor a restart of HAProxy.
"""

import contextlib
import os
import queue
import sys
import threading
from typing import TextIO

WAITING_LINES = 1_000
"""The number of lines that wait for a reader. Further lines are dropped."""
FLUSH_S = 1
"""The longest time to wait for a reader when the server ends."""


class Output:
    """Writes lines in the order in which they arrive. No method waits for a reader, except `flush` for a short time."""

    def __init__(self) -> None:
        self._lines: queue.Queue[tuple[TextIO, str]] = queue.Queue(WAITING_LINES)
        self._lock = threading.Lock()
        self._dropped = 0
        threading.Thread(target=self._write, name="output", daemon=True).start()

    def say(self, line: str, stream: TextIO | None = None) -> None:
        """Write a line. If too many lines are waiting, drop it; the next line that is written begins with their number.

        Args:
            line: the line, without its end.
            stream: the output; None for standard output.
        """
        with self._lock:
            if self._dropped:
                line = f"{self._dropped} lines were dropped, because nobody read this output.\n{line}"
            try:
                self._lines.put_nowait((stream or sys.stdout, line))
                self._dropped = 0
            except queue.Full:
                self._dropped += 1

    def flush(self) -> None:
        """Return when all lines are written, or after `FLUSH_S`."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, FLUSH_S)

    def _write(self) -> None:
        while True:
            stream, line = self._lines.get()
            # The server keeps running if the disk is full, or if the output is closed or has no reader.
            with contextlib.suppress(OSError, AttributeError):
                # Paths may have characters that the locale cannot encode. The stream's own buffer is not used: at exit,
                # Python would wait for the thread that is writing it.
                rest = f"{line}\n".encode(stream.encoding, "backslashreplace")
                while rest:
                    rest = rest[os.write(stream.fileno(), rest) :]
            self._lines.task_done()
