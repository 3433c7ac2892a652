"""Passthrough: open files that the kernel reads and writes by itself, with the speed of the branch.

The kernel is given a descriptor of the branch's file, under a number, and sends no more requests for data (Linux 6.9,
FUSE_DEV_IOC_BACKING_OPEN in linux/fuse.h). Owns these numbers. All descriptors of a file that are open at a time have
to be alike: with the same number, or without. Which files may be passed through is pyunion/fs/files.py.
"""

from __future__ import annotations

import fcntl
import logging
import struct
from collections.abc import Callable

from pyunion.fs.callers import without_fsetid
from pyunion.fs.files import OpenFiles
from pyunion.fs.nodes import File

log = logging.getLogger(__name__)

_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("=iIQ")
_BACKING_ID = struct.Struct("=I")


class Backing:
    """The numbers that the kernel has for files of one session."""

    def __init__(self, files: OpenFiles, session_fd: Callable[[], int]) -> None:
        self._files = files
        self._session_fd = session_fd
        self._ids: dict[int, int] = {}  # by node
        self.granted = False

    def __len__(self) -> int:
        """How many files are being passed through."""
        return len(self._ids)

    def __contains__(self, ino: int) -> bool:
        """Whether a node is being passed through."""
        return ino in self._ids

    def of(self, file: File, fd: int) -> int:
        """The number for a descriptor that was just opened; 0 if it is read and written by requests."""
        if not self.granted:
            return 0
        known = self._ids.get(file.ino, 0)
        if known or (file.fds is not None and len(file.fds) > 1):
            return known
        try:
            if not self._files.may_pass_through(file):
                return 0
            known = self._open(fd)
        except OSError as error:  # ELOOP from a file system that is stacked itself
            log.info("%r is not passed through: %s", file.name, error.strerror)
            return 0
        self._ids[file.ino] = known
        return known

    def _open(self, fd: int) -> int:
        """Whatever is written by the kernel is written in our name; setuid and setgid have to go all the same."""
        with without_fsetid():
            # a mutable buffer: with an immutable one the result is lost
            return int(fcntl.ioctl(self._session_fd(), _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0))))

    def released(self, file: File) -> None:
        """A descriptor of the file was closed."""
        if not file.fds:
            known = self._ids.pop(file.ino, 0)
            if known:
                fcntl.ioctl(self._session_fd(), _BACKING_CLOSE, _BACKING_ID.pack(known))
