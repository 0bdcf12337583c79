"""Entry point of the command line: `python -m sentiment` does the same as `sentiment`."""

import sys

if __name__ == "__main__":
    try:
        from sentiment.cli import main
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: the Python package {error.name!r} is not installed for {sys.executable}. `pip install` of the "
            "client's folder installs it; `make serve` installs it into .venv."
        )
    sys.exit(main())
