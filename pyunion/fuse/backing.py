"""Passthrough: open files that the kernel reads and writes by itself, with the speed of the branch.

The kernel is given a descriptor of the branch's file, under a number, and sends no more requests for data (Linux 6.9,
FUSE_DEV_IOC_BACKING_OPEN in linux/fuse.h). Owns these numbers. All descriptors that are open at a time on what the
kernel takes for one file have to be alike: with the same number, or without. So when the data of a lower file have
moved while somebody reads them there, the kernel has to get to know the file anew (Table.renew) before it is opened
again. Which files may be passed through is pyunion/fs/files.py.
"""

from __future__ import annotations

import logging
import os

from pyunion.fs.callers import CAP_FSETID
from pyunion.fs.files import OpenFiles
from pyunion.fs.nodes import File, Place
from pyunion.fuse import wire

log = logging.getLogger(__name__)

# The right to leave setuid and setgid as they are by a write.
_NOT_BY_KERNEL = 1 << CAP_FSETID


class _Opened:
    """What the kernel takes for one file, while that is open."""

    __slots__ = ("below", "fds", "number")

    def __init__(self, number: int, below: Place | None) -> None:
        self.number = number  # the kernel's, for what it reads and writes by itself; else 0
        self.below = below  # where that is, see File.data_below()
        self.fds = 0  # how many descriptors


class Backing:
    """The numbers that the kernel has for files of one session."""

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._opened: dict[int, _Opened] = {}  # by the id of the node
        self._id_of: dict[int, int] = {}  # by the descriptor
        self._refused: set[bytes] = set()  # branches with files that cannot be passed through
        self.granted = False

    def __len__(self) -> int:
        """How many files are being passed through."""
        return sum(1 for opened in self._opened.values() if opened.number)

    def __contains__(self, id_: int) -> bool:
        """Whether a file is being passed through."""
        opened = self._opened.get(id_)
        return opened is not None and opened.number != 0

    def is_outdated(self, id_: int, file: File) -> bool:
        """Whether a file is being passed through from where its data are no more."""
        opened = self._opened.get(id_)
        return opened is not None and opened.number != 0 and opened.below != file.data_below()

    def of(self, id_: int, file: File, fd: int, st: os.stat_result | None = None) -> int:
        """The kernel's number for a descriptor that was just opened by an id of the file, whose attributes the caller
        may know; 0 if requests read and write it."""
        if not self.granted:
            return 0
        opened = self._opened.get(id_)
        if opened is None:
            number = 0 if file.handle is not None else self._pass(file, fd, st)
            opened = self._opened[id_] = _Opened(number, file.data_below())
        opened.fds += 1
        self._id_of[fd] = id_
        return opened.number

    def _pass(self, file: File, fd: int, st: os.stat_result | None) -> int:
        """Begin to pass a file through, if that may be."""
        try:
            # What the kernel writes it writes in our name; setuid and setgid have to go all the same.
            return wire.backing_open(fd, _NOT_BY_KERNEL) if self._files.may_pass_through(file, st) else 0
        except OSError as error:  # ELOOP from a file system that is stacked itself
            branch = file.source[0].branch
            if branch.path not in self._refused:
                self._refused.add(branch.path)
                log.info("files of branch %r are not passed through: %s", branch.path, error.strerror)
            return 0

    def released(self, fd: int) -> None:
        """A descriptor was closed."""
        id_ = self._id_of.pop(fd, None)
        if id_ is None:
            return
        opened = self._opened[id_]
        opened.fds -= 1
        if not opened.fds:
            del self._opened[id_]
            if opened.number:
                wire.backing_close(opened.number)
