"""`python -m client`: the same as `sentiment`."""

import sys

from client.cli import main

if __name__ == "__main__":
    sys.exit(main())
