"""`python -m pyunion`: the command line, without an installed script."""

import signal
import sys

_HANDLER = signal.getsignal(signal.SIGINT)
if _HANDLER is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of imports

from pyunion.cli import main  # noqa: E402

if __name__ == "__main__":
    signal.signal(signal.SIGINT, _HANDLER)
    sys.exit(main())
