"""The errors that users of a command line can correct, as opposed to defects in the code."""

import sys
from collections.abc import Callable
from typing import Final

OWN_PACKAGES: Final = ("benchmarks", "handler", "training")
"""Packages of this project: if one of them is missing, that is a defect and no matter of installation."""


class TrainingError(Exception):
    """An invalid input or setting. The message says what was expected and how to correct it."""


def exit_code(command: Callable[[], int], installation: str) -> int:
    """Run a command line; return its exit code, or 1 with a message if a Python package is missing, or 130 at Ctrl-C.

    Args:
        command: imports and runs the command line.
        installation: a sentence that says how to install the packages.
    """
    try:
        return command()
    except KeyboardInterrupt:  # while it imports, which takes seconds
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *OWN_PACKAGES):
            raise
        print(
            f"error: the Python package {package!r} is not installed for {sys.executable}. {installation}",
            file=sys.stderr,
        )
        return 1
