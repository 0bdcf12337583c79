"""Entry point of `python -m bulk`."""

import logging
import os
import sys
from contextlib import suppress

from bulk.process import FAILED, end_on_signals, finish_output, prepare_streams, say


def run() -> int:
    """Run the command line; return its exit code."""
    end_on_signals()  # before the imports, which take seconds
    if not prepare_streams():
        say("error: Standard output is closed.")
        return FAILED
    # Beam logs to the root logger while it is imported.
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        from bulk.cli import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "bulk", "handler"):
            raise
        say(
            f"error: the Python package {package!r} is not installed for {sys.executable}. `make bulk-setup` installs "
            "the packages into .venv-bulk: .venv-bulk/bin/python -m bulk"
        )
        return FAILED
    finally:
        finish_output()


if __name__ == "__main__":
    code = run()
    with suppress(ImportError):  # it has been reported
        from bulk.workers import LocalOptions

        # When Python ends, Beam ends a job server that it has started. On this machine there is none, and Python takes
        # 0.3 s to end.
        if LocalOptions.parse(sys.argv[1:]) is not None:
            os._exit(code)
    sys.exit(code)
