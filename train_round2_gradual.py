"""Round 2 training: the same as `caspi train`. The deployment guide names this path."""

import sys

from caspi.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
