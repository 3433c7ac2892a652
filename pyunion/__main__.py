"""`python -m pyunion`: the command line, without an installed script."""

import sys

from pyunion.cli import main

if __name__ == "__main__":
    sys.exit(main())
