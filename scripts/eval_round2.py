"""Round 1 against Round 2: the same as `caspi compare`. The deployment guide names this path."""

import sys

from caspi.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
