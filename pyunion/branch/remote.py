"""Branches that may not answer: their files come from a program or a server that can be slow, hang or die.

Owns which file systems these are, what is said when one fails, and the thread that closes their files, since close(2)
asks them as well. What is asked of them, and by whom, is pyunion/branch/asking.py.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from errno import ECONNABORTED, ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, EIO, ENOTCONN, ESTALE, ETIMEDOUT

from pyunion.branch import syscalls

log = logging.getLogger(__name__)

# f_type in statfs(2) and linux/magic.h: FUSE, NFS, SMB (three), 9p, Ceph, AFS (two), Coda, OCFS2, GFS2, Lustre
_TYPES = frozenset(
    {
        *(0x65735546, 0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x01021997, 0x00C36400, 0x5346414F, 0x6B414653),
        *(0x73757245, 0x7461636F, 0x01161970, 0x0BD00BD0),
    }
)
_FAILURES = frozenset(
    {ENOTCONN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, EIO, ESTALE, ETIMEDOUT}
)


def is_remote(fd: int) -> bool:
    """Whether what is behind a descriptor may not answer."""
    return syscalls.filesystem_type(fd) & 0xFFFFFFFF in _TYPES


class Remote:
    """What is known of one such branch. For any thread."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._fails = False
        self._changing = threading.Lock()
        self._steps: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def note(self, error: OSError | None) -> None:
        """How a question has ended. That the branch fails is logged once, until it answers again."""
        if error is not None and error.errno not in _FAILURES:
            return
        with self._changing:
            before, self._fails = self._fails, error is not None
        if error is not None and not before:
            log.error("the branch %r fails: %s. What is in it cannot be reached", self._path, error.strerror)
        elif error is None and before:
            log.warning("the branch %r answers again", self._path)

    def in_order(self, step: Callable[[], object]) -> None:
        """Make a step that ends with the close(2) of a file, in a thread, after those that came before it."""
        self._steps.put(step)
        with self._changing:
            if self._thread is None:
                # no thread of trio's: nobody waits for it at the end
                thread = threading.Thread(target=self._make_steps, name="close", daemon=True)
                with suppress(RuntimeError):  # no room for a thread now: the next step begins it
                    thread.start()
                    self._thread = thread

    def _make_steps(self) -> None:
        while True:
            step = self._steps.get()
            with suppress(OSError):  # close(2) gives the descriptor back whatever it says
                step()


def close(fd: int, remote: Remote | None) -> None:
    """close(2) of a file of a branch, without waiting for one that may not answer."""
    if remote is None:
        os.close(fd)
    else:
        remote.in_order(lambda: os.close(fd))
