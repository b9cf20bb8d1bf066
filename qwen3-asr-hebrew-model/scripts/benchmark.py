"""One model over the test sets: the same as `caspi evaluate`, with results where the deployment guide expects them."""

import sys
from pathlib import Path

from caspi.cli import main

if __name__ == "__main__":
    folder = Path(__file__).parents[1]
    sys.exit(main(["evaluate", "--output", str(folder), *sys.argv[1:]]))
