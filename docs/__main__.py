"""Entry point of the generator of the documentation: `python -m docs`."""

import sys

from training.errors import exit_code


def run() -> int:
    """Write the generated parts; return the exit code."""
    from docs.generate import main

    return main()


sys.exit(exit_code(run, "`make test` installs the packages of the tests into .venv. Run .venv/bin/python -m docs."))
