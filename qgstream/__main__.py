"""`python -m qgstream` is `qgstream`."""

import sys

from qgstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
