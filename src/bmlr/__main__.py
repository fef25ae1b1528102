"""``python -m bmlr``: the command line."""

import sys

from bmlr.cli import main

if __name__ == "__main__":
    sys.exit(main())
