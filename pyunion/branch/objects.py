"""System calls on one object of a branch, addressed as (directory descriptor, name) and never followed.

An object that has lost its name is addressed by an O_PATH descriptor of its own and the empty name.
Knows no branches, no marks' meanings, no locks.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EINVAL, ELOOP, ENODATA, ENOENT, ENOTDIR, ENOTSUP, ENXIO, EPERM

from pyunion.branch import syscalls
from pyunion.union import marks

_STATX_ATTR_IMMUTABLE, _STATX_ATTR_APPEND = 0x10, 0x20  # linux/stat.h
# What calls say of a name that was something else, or there, a moment ago: a directory or a file that is opened.
GONE = (ENOENT, ENOTDIR, ELOOP, ENXIO)
PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def path(fd: int, name: bytes) -> bytes:
    """A path for calls that take no directory descriptor; used with follow_symlinks=not name."""
    return b"/proc/self/fd/%d/%b" % (fd, name) if name else b"/proc/self/fd/%d" % fd


def stat(fd: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.fstat(fd)


def names(fd: int) -> list[bytes]:
    """All names in a directory."""
    return os.listdir(path(fd, b""))


def open_file(fd: int, name: bytes, flags: int) -> int:
    """open(2) of a regular file; O_NONBLOCK so that something else put there from outside cannot block."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    if name:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=fd)
    return os.open(path(fd, name), flags)


def readlink(fd: int, name: bytes) -> bytes:
    return os.readlink(name, dir_fd=fd)


def chmod(fd: int, name: bytes, mode: int) -> None:
    if name:
        syscalls.chmod_nofollow(fd, name, mode)
    else:
        os.chmod(path(fd, name), mode)


def chown(fd: int, name: bytes, uid: int, gid: int) -> None:
    """-1 leaves an id as it is."""
    if name:
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    else:
        os.chown(path(fd, name), uid, gid)


def utime(fd: int, name: bytes, atime_ns: int, mtime_ns: int) -> None:
    if name:
        os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)
    else:
        os.utime(path(fd, name), ns=(atime_ns, mtime_ns))


@contextmanager
def keeping_times(directory_fd: int) -> Iterator[None]:
    """For an entry that comes into a directory where it was already as far as users can see. Once it is there, it
    stays, though the times cannot be put back."""
    before = os.fstat(directory_fd)
    yield
    with suppress(OSError):
        utime(directory_fd, b".", before.st_atime_ns, before.st_mtime_ns)


def touch(fd: int, name: bytes) -> None:
    """Set both times to now."""
    if name:
        os.utime(name, dir_fd=fd, follow_symlinks=False)
    else:
        os.utime(path(fd, name))


def statx(fd: int, name: bytes, mask: int) -> bytearray:
    """struct statx of the object, with its time of birth."""
    return syscalls.statx(fd, name, mask)


def protection(fd: int, name: bytes) -> int:
    """APPEND and IMMUTABLE (chattr(1)) of an object, as its file system has them."""
    answer = statx(fd, name, 0)
    (attributes,) = struct.unpack_from("=Q", answer, 8)
    (known,) = struct.unpack_from("=Q", answer, 56)  # stx_attributes_mask
    if not known & _STATX_ATTR_APPEND:
        return 0  # erofs calls all that it has immutable, since nobody can write it; chattr(1) has said nothing
    append = marks.APPEND if attributes & _STATX_ATTR_APPEND else 0
    return append | (marks.IMMUTABLE if attributes & _STATX_ATTR_IMMUTABLE else 0)


def truncate(fd: int, name: bytes, size: int) -> None:
    file = open_file(fd, name, os.O_WRONLY)
    try:
        os.ftruncate(file, size)
    finally:
        os.close(file)


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the first `size` bytes of an open file have data between the holes: (start, end) pairs, found one by one
    (SEEK_HOLE and SEEK_DATA of lseek(2)). All of them where the file system does not know. A file without holes takes
    one call."""
    start = 0
    while start < size:
        try:
            end = min(size, os.lseek(fd, start, os.SEEK_HOLE))
            if end == start:
                start = os.lseek(fd, start, os.SEEK_DATA)
                continue
        except OSError as error:
            if error.errno == ENXIO:  # nothing but a hole is left
                return
            if error.errno != EINVAL:
                raise
            end = size
        yield start, end
        start = end


def get_xattr(fd: int, name: bytes, key: bytes) -> bytes:
    return os.getxattr(path(fd, name), key, follow_symlinks=not name)


def set_xattr(fd: int, name: bytes, key: bytes, value: bytes) -> None:
    os.setxattr(path(fd, name), key, value, follow_symlinks=not name)


def remove_xattr(fd: int, name: bytes, key: bytes) -> None:
    os.removexattr(path(fd, name), key, follow_symlinks=not name)


def list_xattr(fd: int, name: bytes) -> list[bytes]:
    """The names of all xattrs; none where the file system has no xattrs."""
    try:
        return [os.fsencode(key) for key in os.listxattr(path(fd, name), follow_symlinks=not name)]
    except OSError as error:
        if error.errno == ENOTSUP:
            return []
        raise


def has_xwhiteout(fd: int, name: bytes, prefix: bytes | None) -> bool:
    """Whether an empty regular file is a whiteout in xattr form, provided that its directory says it has some."""
    return prefix is not None and get_mark(fd, name, prefix + marks.WHITEOUT) is not None


def get_mark(fd: int, name: bytes, key: bytes) -> bytes | None:
    """The value of a mark, None where the object has none, or may not have or show any."""
    try:
        return get_xattr(fd, name, key)
    except OSError as error:
        if error.errno in (ENODATA, ENOTSUP, EPERM, EACCES):
            return None
        raise
