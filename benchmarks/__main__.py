"""Entry point of the benchmarks' command line: `python -m benchmarks`, which `make bench` runs."""

import sys

from training.errors import exit_code


def run() -> int:
    """Run the command line; return its exit code."""
    from benchmarks.run import main

    return main()


sys.exit(
    exit_code(run, "`make bench` installs the packages of the benchmarks into .venv-benchmarks, and runs them there.")
)
