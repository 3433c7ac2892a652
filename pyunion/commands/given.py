"""The branches that a command line names, for those commands that read them without a mount."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from contextlib import ExitStack

from pyunion import mountinfo
from pyunion.config import split_lowers
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers.tree import Branches, open_branches
from pyunion.union import marks


def branches(arguments: Namespace, stack: ExitStack, *, writable: bool = False) -> Branches:
    """--upper, --lower and --userxattr, opened, upper for writing if asked for; `stack` closes them.

    Raises PyunionError.
    """
    lowers, data_only = split_lowers([os.fsencode(text) for text in arguments.lower])
    return open_branches(
        os.fsencode(arguments.upper),
        lowers,
        stack,
        data_only=data_only,
        prefix=marks.USER if arguments.userxattr else None,
        writable=writable,
    )


def refuse_mounted(*directories: str) -> None:
    """Raises PyunionError where the kernel's overlayfs has one of the directories mounted; it takes no lock on them.

    A pyunion mount has one, and is found by that.
    """
    for given in directories:
        path = os.path.realpath(os.fsencode(given))
        for mount in mountinfo.read():
            if mount.fstype == "overlay" and path in _writable(mount.options):
                raise PyunionError(
                    f"{given} is in use by the overlay mount on {os.fsdecode(mount.point)}; unmount that first",
                    ExitCode.BUSY,
                )


def _writable(options: bytes) -> list[bytes]:
    """The directories that an overlay mount writes to, from its options in mountinfo."""
    found = re.findall(rb"(?:^|,)(?:upper|work)dir=((?:\\.|[^,\\])*)", options)
    return [os.path.realpath(re.sub(rb"\\(.)", rb"\1", path)) for path in found]
