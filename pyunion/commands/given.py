"""The branches that a command line names, for those commands that read them without a mount."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import ExitStack

from pyunion.config import split_lowers
from pyunion.layers.tree import Branches, open_branches
from pyunion.union import marks


def branches(arguments: Namespace, stack: ExitStack) -> Branches:
    """--upper, --lower and --userxattr, opened for reading; `stack` closes them. Raises PyunionError."""
    lowers, data_only = split_lowers([os.fsencode(text) for text in arguments.lower])
    return open_branches(
        os.fsencode(arguments.upper),
        lowers,
        stack,
        data_only=data_only,
        prefix=marks.USER if arguments.userxattr else None,
    )
