"""Entry point of the benchmarks' command line: `python -m benchmarks`, which `make bench` runs."""

import sys
from typing import Final

OWN_PACKAGES: Final = ("benchmarks", "handler", "training")
"""Packages of this project: if one of them is missing, that is a defect and no matter of installation."""


def run() -> int:
    """Run the command line; return its exit code, or 1 with a message if a Python package is missing."""
    try:
        from benchmarks.run import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *OWN_PACKAGES):
            raise
        print(
            f"error: the Python package {package!r} is not installed for {sys.executable}. `make bench` installs the "
            f"packages of the benchmarks into .venv-benchmarks, and runs them there.",
            file=sys.stderr,
        )
        return 1


sys.exit(run())
