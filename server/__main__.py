"""Entry point of the server: `python -m server`, which `make serve` runs."""

import sys

try:
    from server.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        f"error: the Python package {error.name!r} is not installed for {sys.executable}. `make serve` installs the "
        "server's packages into .venv, and runs it there."
    )
sys.exit(main())
