"""New directories that are there whole or not at all: filled beside their place, and renamed.

Owns the name of what is not finished. Nothing else knows how a directory comes into being.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENODATA, ENOTEMPTY, ENOTSUP

from pyunion.branch import syscalls
from pyunion.branch.work import remove_tree
from pyunion.errors import ExitCode, PyunionError
from pyunion.interrupts import put_off

_PREFIX = b".pyunion-new-"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def staged(place: bytes) -> Iterator[int]:
    """A descriptor of an empty directory that becomes `place` at the end, when all of it is on disk; if something goes
    wrong nothing is left. Raises PyunionError where there is something already."""
    parent = os.path.dirname(os.path.abspath(place))
    if os.path.lexists(place):
        raise taken(place)
    with put_off() as let_in:
        try:
            path, fd = _begun(parent)
        except OSError as error:
            raise PyunionError(f"cannot create {os.fsdecode(place)}: {error.strerror}") from None
        try:
            os.fchmod(fd, 0o755)
            without_acls(fd)
            with let_in():
                yield fd
                syscalls.syncfs(fd)
            _put(path, place)
        except BaseException:
            remove_tree(syscalls.AT_FDCWD, path)
            raise
        finally:
            os.close(fd)


def _put(path: bytes, place: bytes) -> None:
    try:
        syscalls.renameat2(syscalls.AT_FDCWD, path, syscalls.AT_FDCWD, place, syscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno in (EEXIST, ENOTEMPTY):
            raise taken(place) from None
        raise


@contextmanager
def scratch(folder: bytes) -> Iterator[tuple[bytes, int]]:
    """A new directory for what is needed for a while, and a descriptor of it. Raises OSError."""
    with put_off() as let_in:
        path, fd = _begun(folder)
        try:
            without_acls(fd)
            with let_in():
                yield path, fd
        finally:
            remove_tree(syscalls.AT_FDCWD, path)
            os.close(fd)


def _begun(folder: bytes) -> tuple[bytes, int]:
    """A new directory that has our lock as long as the descriptor is open, which tells others that it is in use."""
    remove_unfinished(folder)
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=folder)
        with suppress(FileNotFoundError):  # somebody has taken it for a dead one's before we had the lock
            fd = os.open(path, _DIR)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)


def remove_unfinished(folder: bytes) -> None:
    """Remove what those have left who were killed: nobody has a lock on it. Raises OSError."""
    for name in os.listdir(folder):
        if not name.startswith(_PREFIX):
            continue
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, _DIR)
        except OSError:  # another user's, or just gone
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            remove_tree(syscalls.AT_FDCWD, path)
        finally:
            os.close(fd)


def without_acls(fd: int) -> None:
    """What a directory has inherited from where it is made is none of what comes into it."""
    for key in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(fd, key)
        except OSError as error:
            if error.errno not in (ENODATA, ENOTSUP):
                raise


def taken(place: bytes) -> PyunionError:
    return PyunionError(f"{os.fsdecode(place)} is there already; name a new directory", ExitCode.USAGE)
