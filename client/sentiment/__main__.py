"""Run the command line: `python -m sentiment` does the same as `sentiment`."""

import sys

from sentiment.cli import main

if __name__ == "__main__":
    sys.exit(main())
