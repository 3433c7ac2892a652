"""WORK/aside: where a repair puts what might be somebody's data, on the file system that it is on.

Owns the names there. Mounts pass over it, the kernel's too; only the user empties it.
"""

from __future__ import annotations

import contextlib
import os
from errno import EEXIST

from pyunion.branch import syscalls

_NAME = b"aside"
_LONGEST = 240  # with a number before it


class Aside:
    """Made when it is first needed."""

    def __init__(self, work_fd: int, work: bytes) -> None:
        self._work_fd = work_fd
        self._work = work

    def take(self, dir_fd: int, name: bytes) -> str:
        """Move an entry of a directory there; returns a clause that says so. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_NAME, 0o700, dir_fd=self._work_fd)
        fd = os.open(_NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._work_fd)
        try:
            number = 1
            while True:
                as_name = b"%d-%b" % (number, name[:_LONGEST])
                try:
                    syscalls.renameat2(dir_fd, name, fd, as_name, syscalls.RENAME_NOREPLACE)
                    break
                except OSError as error:
                    if error.errno != EEXIST:
                        raise
                    number += 1
        finally:
            os.close(fd)
        return f"moved to {os.fsdecode(os.path.join(self._work, _NAME, as_name))}"
