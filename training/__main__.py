"""The training command line; `python -m training --help`."""

import io
import sys

OWN = ("handler", "training")


def run() -> int:
    """The exit code of the command; 1 with a message if a package that it needs is not installed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name or a label may not fit the locale's encoding
    try:
        from training.cli import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *OWN):
            raise
        print(
            f"error: the Python package {package!r} is not installed for {sys.executable}. `make train-setup` installs "
            f"what the training commands need into .venv; run them with .venv/bin/python.",
            file=sys.stderr,
        )
        return 1


sys.exit(run())
