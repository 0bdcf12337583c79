"""A worker process of the local runner: `python -m bulk.worker PARENT`.

It is Beam's worker, and it ends when the process that started it ends, however that ends. PARENT is that process' id.
"""

import logging
import os
import sys
import threading
import time
from typing import Final

CHECK_S: Final = 0.5
"""Interval between two checks for the starting process, in seconds."""


def main() -> None:
    """Run the worker until the runner ends it."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    logging.getLogger("handler").addHandler(logging.StreamHandler())
    # Beam prints its messages and the traceback of each exception. The exception also reaches the runner.
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    main()
