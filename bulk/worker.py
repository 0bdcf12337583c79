"""A worker process of the local runner: `python -m bulk.worker`. See `bulk.workers`.

It is Beam's worker. It imports its packages, and then waits for its environment variables: a line of JSON on standard
input. Standard input ends when the process that started the worker ends, however that ends; then the worker ends.
"""

import json
import logging
import os
import queue
import sys
import threading
from contextlib import suppress


def main() -> None:
    """Run the worker until the runner ends it."""
    environment: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(environment,), daemon=True).start()
    logging.getLogger("handler").addHandler(logging.StreamHandler())
    # Beam prints its messages and the traceback of each exception. The exception also reaches the runner.
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open
    from apache_beam.runners.worker import sdk_worker_main

    with suppress(ImportError):  # most models need it; for those, it is reported when they are loaded
        import handler.spacy_tokens  # noqa: F401
    os.environ.update(json.loads(environment.get()))
    code = 1
    try:
        sdk_worker_main.main([])
        code = 0
    finally:
        # If the runner is gone, threads of Beam still work. C++ prints a line if they work while Python ends.
        os._exit(code)


def _read(environment: "queue.SimpleQueue[bytes]") -> None:
    """Read the line of standard input, and end the process when standard input ends."""
    line = b""
    # Python's own buffered reader would hold a lock that Python wants when it exits.
    while block := os.read(0, 1 << 16):
        line += block
        if line.endswith(b"\n"):
            environment.put(line)
    os._exit(1)


if __name__ == "__main__":
    main()
