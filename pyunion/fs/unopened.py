"""Files of lower branches that are open without a descriptor: most are opened, read from the kernel's cache and closed,
and no request of these needs one.

Owns the handles that stand for such files: numbers above those of all descriptors. A file is opened when the first
request needs it, and in any case LATER_S after open(2): from then on who has it open goes on with it when another one
comes under its name in the branch. Only where an open(2) cannot fail: on branches that answer at once, by a daemon that
may open whatever they hold.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from errno import EMFILE, ENFILE, ENOENT, ESTALE

import trio

from pyunion.branch import objects
from pyunion.fs.nodes import File, Handle

log = logging.getLogger(__name__)

FIRST = 1 << 32  # of the handles that are no descriptors
LATER_S = 0.01

_TOO_FEW = (EMFILE, ENFILE)  # descriptors
_AT_ONCE = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_DIRECT


class Unopened:
    """All such handles. `register` makes a descriptor one of the file's open ones, `release` closes it; files are
    opened with O_NOATIME as well, if `noatime` is that."""

    def __init__(
        self, register: Callable[[int, File], None], release: Callable[[int], None], noatime: int = 0
    ) -> None:
        self._flags = os.O_RDONLY | noatime
        self._register = register
        self._release = release
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(FIRST)
        self._waiting: list[Handle] = []  # to be opened later
        self._short = False  # of descriptors, when some of them were to be opened
        self._some = trio.Event()

    def __len__(self) -> int:
        """How many times files are open by these handles, besides the descriptors that they have."""
        return sum(handle.users - (handle.fd >= 0) for handle in self._handles.values())

    def begin(self, file: File, flags: int) -> int:
        """A handle for an open(2) of a file in a lower branch that can do without a descriptor; else 0."""
        if flags & _AT_ONCE or self._short or file.dir.branch.remote is not None:
            return 0
        handle = file.handle
        if handle is None:
            if file.data is not None or file.pin >= 0 or file.former is not None:
                return 0
            handle = file.handle = Handle(file, next(self._numbers))
            self._handles[handle.number] = handle
            self._waiting.append(handle)
            self._some.set()
        handle.users += 1
        return handle.number

    def file(self, number: int) -> File:
        """What a handle stands for."""
        return self._handles[number].file

    def descriptor(self, number: int) -> int:
        """The one of a handle, which is opened now if it is not. Raises OSError."""
        handle = self._handles[number]
        return handle.fd if handle.fd >= 0 else self._open(handle)

    def _open(self, handle: Handle) -> int:
        if handle.errno:
            raise OSError(handle.errno, os.strerror(handle.errno), handle.file.name)
        file = handle.file
        try:
            where = file.address() if file.data is None else (file.data[0].fd(), file.data[1])
            handle.fd = objects.open_file(*where, self._flags)
        except OSError as error:
            if error.errno not in _TOO_FEW:  # what is there later need not be what was opened
                handle.errno = ESTALE if error.errno == ENOENT else error.errno or ESTALE
            raise
        self._register(handle.fd, file)
        return handle.fd

    def end(self, number: int) -> None:
        """One of its users has closed it."""
        handle = self._handles[number]
        handle.users -= 1
        if handle.users == 0:
            del self._handles[number]
            handle.file.handle = None
            if handle.fd >= 0:
                self._release(handle.fd)

    def open_all(self) -> None:
        """Whatever is open by now gets its descriptor. As long as there are too few, open(2) needs one at once, and
        fails without."""
        while self._waiting:
            handle = self._waiting[-1]
            try:
                if handle.users and handle.fd < 0:
                    self._open(handle)
            except OSError as error:
                if error.errno in _TOO_FEW:
                    self._short = True
                    return
                log.warning("%r, which is open, cannot be opened in its branch: %s", handle.file.name, error.strerror)
            self._waiting.pop()
        self._short = False

    async def open_later(self) -> None:
        """A task: opens what stays open."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._waiting:
                await trio.sleep(LATER_S)
                self.open_all()

    def close_all(self) -> None:
        """At the end of the mount."""
        for handle in list(self._handles.values()):
            handle.users = 1
            self.end(handle.number)
