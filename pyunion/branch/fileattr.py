"""Inode flags as chattr(1) knows them (ioctl_iflags(2), FS_IOC_FSGETXATTR) on objects of branches.

Owns the form in which two of them are kept in upper. An immutable or append-only object could not be renamed into its
place, nor get a link; so overlayfs stores these two in the mark `protattr` (Linux 5.15) and leaves the object alone.
What follows from them is pyunion/fs/protection.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENODATA, ENOSYS, ENOTSUP, ENOTTY, EPERM

from pyunion.branch import objects
from pyunion.branch.dirs import Branch
from pyunion.union import marks
from pyunion.union.marks import APPEND, IMMUTABLE

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
COMMANDS = frozenset({_GETFLAGS, _SETFLAGS, _FSGETXATTR, _FSSETXATTR})
SETTING = frozenset({_SETFLAGS, _FSSETXATTR})

_FLAGS = struct.Struct("=I")  # of all four; what struct fsxattr has besides comes after it
_SYNC, _NOATIME = 0x8, 0x80
_COPIED = _SYNC | _NOATIME
_BITS = {APPEND: 0x20, IMMUTABLE: 0x10}  # FS_APPEND_FL, FS_IMMUTABLE_FL
_XBITS = {APPEND: 0x10, IMMUTABLE: 0x8}  # FS_XFLAG_APPEND, FS_XFLAG_IMMUTABLE
_NOT_KNOWN = (ENOTTY, EINVAL, ENOTSUP, ENOSYS, EPERM)


def read(fd: int) -> int:
    """The flags (FS_*_FL) of an open file or directory; none where its file system has no such thing."""
    argument = bytearray(_FLAGS.size)
    try:
        fcntl.ioctl(fd, _GETFLAGS, argument)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
    return int(_FLAGS.unpack(argument)[0])


def read_directory(fd: int) -> int:
    """The same of a directory that `fd` only stands for (O_PATH)."""
    opened = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return read(opened)
    finally:
        os.close(opened)


def on_object(fd: int, name: bytes, command: int, argument: bytes) -> bytes:
    """One of COMMANDS on an object of a branch, which is opened for that; what it gives back."""
    answer = bytearray(argument)
    opened = objects.open_file(fd, name, os.O_RDONLY)
    try:
        fcntl.ioctl(opened, command, answer)
    finally:
        os.close(opened)
    return bytes(answer)


def copy(flags: int, fd: int, xattr_prefix: bytes | None) -> None:
    """Give an open copy the flags of what it is a copy of, as far as overlayfs does and this file system can."""
    held = _protection(flags, _BITS)
    if held and xattr_prefix is not None:
        os.setxattr(fd, xattr_prefix + marks.PROTATTR, marks.protattr(held))
    if flags & _COPIED:
        with suppress(OSError):
            fcntl.ioctl(fd, _SETFLAGS, bytearray(_FLAGS.pack(read(fd) & ~_COPIED | flags & _COPIED)))


def kept(flags: int, xattr_prefix: bytes | None) -> int:
    """APPEND and IMMUTABLE of a copy that copy() has made."""
    return _protection(flags, _BITS) if xattr_prefix is not None else 0


def show(command: int, argument: bytearray, held: int) -> None:
    """Add what a mark says to the flags that were read from an object."""
    bits = _bits(command)
    (flags,) = _FLAGS.unpack_from(argument)
    _FLAGS.pack_into(argument, 0, flags | sum(bit for flag, bit in bits.items() if held & flag))


@contextmanager
def stored(command: int, argument: bytearray, where: tuple[int, bytes], branch: Branch, held: int) -> Iterator[int]:
    """Move APPEND and IMMUTABLE from flags that are to be set into the mark of an object in upper, and give them to
    who then sets the others. If that fails the mark says what it says now, `held`, again. Raises EPERM where upper can
    have no marks.
    """
    bits = _bits(command)
    (flags,) = _FLAGS.unpack_from(argument)
    wanted = _protection(flags, bits)
    _mark(where, branch.xattr_prefix, wanted, held)
    _FLAGS.pack_into(argument, 0, flags & ~sum(bits.values()))
    try:
        yield wanted
    except OSError:
        with suppress(OSError):
            _mark(where, branch.xattr_prefix, held, wanted)
        raise


def _mark(where: tuple[int, bytes], prefix: bytes | None, wanted: int, held: int) -> None:
    if wanted:
        if prefix is None:
            raise OSError(EPERM, os.strerror(EPERM))
        objects.set_xattr(*where, prefix + marks.PROTATTR, marks.protattr(wanted))
    elif held and prefix is not None:
        _remove(where, prefix + marks.PROTATTR)


def _remove(where: tuple[int, bytes], key: bytes) -> None:
    try:
        objects.remove_xattr(*where, key)
    except OSError as error:
        if error.errno not in (ENODATA, ENOTSUP):
            raise


def _bits(command: int) -> dict[int, int]:
    return _BITS if command in (_GETFLAGS, _SETFLAGS) else _XBITS


def _protection(flags: int, bits: dict[int, int]) -> int:
    return sum(flag for flag, bit in bits.items() if flags & bit)
