"""A worker process of the local runner: `python -m bulk.worker`.

It is Beam's worker, and it ends when the process that started it ends, however that ends.
"""

import logging
import os
import sys
import threading
import time

CHECK_S = 0.5
"""Interval between two checks for the starting process, in seconds."""


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_S)
    os._exit(1)


def main() -> None:
    """Run the worker until the runner ends it."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Beam sends the messages of a worker to the runner. Without a handler, it would print them, too.
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    logging.getLogger("handler").addHandler(logging.StreamHandler())
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
