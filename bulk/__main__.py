"""Entry point of `python -m bulk`."""

import logging
import sys


def run() -> int:
    """Run the command line; return its exit code."""
    # Beam logs to the root logger while it is imported.
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        from bulk.cli import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "bulk", "handler"):
            raise
        print(
            f"error: the Python package {package!r} is not installed for {sys.executable}. `make bulk-setup` installs "
            "the packages into .venv-bulk: .venv-bulk/bin/python -m bulk",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(run())
