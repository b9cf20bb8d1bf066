"""Phase 0: the same as `caspi audit`. The deployment guide names this path."""

import sys

from caspi.cli import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
