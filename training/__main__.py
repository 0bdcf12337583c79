"""Entry point of the training command line: `python -m training`."""

import io
import sys
from typing import Final

OWN_PACKAGES: Final = ("handler", "training")
"""Packages of this project: if one of them is missing, that is a defect and no matter of installation."""


def run() -> int:
    """Run the command line; return its exit code, or 1 with a message if a Python package is missing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale's encoding may lack characters of a label
    try:
        from training.cli import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *OWN_PACKAGES):
            raise
        print(
            f"error: the Python package {package!r} is not installed for {sys.executable}. `make train-setup` installs "
            f"the packages of the training commands into .venv. Run the commands with .venv/bin/python.",
            file=sys.stderr,
        )
        return 1


sys.exit(run())
