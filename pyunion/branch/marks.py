"""Reading and writing overlayfs's marks on the objects of a branch.

What the marks mean is pyunion/union/marks.py; this module knows where they are stored.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from errno import EOPNOTSUPP
from typing import NamedTuple

from pyunion.branch import objects
from pyunion.branch.dirs import Branch, Dir
from pyunion.union import marks

log = logging.getLogger(__name__)


class DirMarks(NamedTuple):
    """What the marks on a directory say about the layers below it."""

    opaque: bool = False
    xwhiteouts: bool = False
    redirect: bytes | None = None
    protection: int = 0  # of a directory in upper: APPEND and IMMUTABLE


_NO_MARKS = DirMarks()
_ANY_MARK = b".overlay."


def read_dir_marks(parent: Dir, name: bytes) -> DirMarks:
    """The marks on the directory `name` in `parent`. One system call where there are none."""
    branch = parent.branch
    if branch.aufs and parent.child(name).stat(marks.AUFS_OPAQUE) is not None:
        return DirMarks(opaque=True)
    return parent.ask(_dir_marks, name, branch)


def _dir_marks(fd: int, name: bytes, branch: Branch) -> DirMarks:
    keys = objects.list_xattr(fd, name)
    if not any(_ANY_MARK in key for key in keys):
        return _NO_MARKS
    opaque = None
    redirect = None
    protection = 0
    prefix = branch.xattr_prefix
    if prefix is not None:
        if prefix + marks.OPAQUE in keys:
            opaque = objects.get_mark(fd, name, prefix + marks.OPAQUE)
        if prefix + marks.REDIRECT in keys:
            redirect = _checked_redirect(branch, name, objects.get_mark(fd, name, prefix + marks.REDIRECT))
        if branch.is_upper and prefix + marks.PROTATTR in keys:
            protection = read_protection(fd, name, branch)
    if branch.user_marks and opaque is None and marks.USER + marks.OPAQUE in keys:
        opaque = objects.get_mark(fd, name, marks.USER + marks.OPAQUE)
    return DirMarks(opaque == marks.OPAQUE_YES, opaque == marks.OPAQUE_XWHITEOUTS, redirect, protection)


class FileMarks(NamedTuple):
    """What the marks on anything but a directory say: are its data below and where, and what is it a copy of."""

    metacopy: bool = False
    redirect: bytes | None = None
    origin: bytes | None = None
    protection: int = 0  # of a file in upper: APPEND and IMMUTABLE


_ORDINARY_FILE = FileMarks()


def read_file_marks(parent: Dir, name: bytes) -> FileMarks:
    """The marks on anything but a directory. One system call where there are none."""
    if parent.branch.xattr_prefix is None:
        return _ORDINARY_FILE
    return parent.ask(_file_marks, name, parent.branch)


def _file_marks(fd: int, name: bytes, branch: Branch) -> FileMarks:
    prefix = branch.xattr_prefix
    assert prefix is not None
    keys = objects.list_xattr(fd, name)
    if not any(_ANY_MARK in key for key in keys):
        return _ORDINARY_FILE
    metacopy = prefix + marks.METACOPY in keys
    redirect = None
    if metacopy and prefix + marks.REDIRECT in keys:
        redirect = _checked_redirect(branch, name, objects.get_mark(fd, name, prefix + marks.REDIRECT))
    origin = None
    protection = 0
    if branch.is_upper:
        if prefix + marks.ORIGIN in keys:
            origin = objects.get_mark(fd, name, prefix + marks.ORIGIN)
        if prefix + marks.PROTATTR in keys:
            protection = read_protection(fd, name, branch)
    return FileMarks(metacopy, redirect, origin, protection)


def read_protection(fd: int, name: bytes, branch: Branch) -> int:
    """What the mark protattr of an object in upper says: APPEND and IMMUTABLE."""
    value = None if branch.xattr_prefix is None else objects.get_mark(fd, name, branch.xattr_prefix + marks.PROTATTR)
    return marks.protection(value or b"")


def _checked_redirect(branch: Branch, name: bytes, value: bytes | None) -> bytes | None:
    if value is None or marks.valid_redirect(value):
        return value
    log.warning("%r on branch %r has an unusable redirect %r, which is ignored", name, branch.path, value)
    return None


def set_whiteout(fd: int, name: bytes, prefix: bytes | None) -> None:
    """Make an empty regular file a whiteout (Linux 6.7), where the file system has no device 0:0 for us."""
    objects.set_xattr(fd, name, _required(prefix) + marks.WHITEOUT, b"y")


def set_xwhiteouts(directory: Dir) -> None:
    """Let a directory of the writable branch say that it has whiteouts in xattr form."""
    prefix = _required(directory.branch.xattr_prefix)
    objects.set_xattr(directory.fd(), b".", prefix + marks.OPAQUE, marks.OPAQUE_XWHITEOUTS)
    directory.xwhiteouts = True


def set_origin(fd: int, name: bytes, prefix: bytes, origin: bytes) -> None:
    """Say which lower object a copy comes from; empty where that cannot be told."""
    objects.set_xattr(fd, name, prefix + marks.ORIGIN, origin)


def origin_of(fd: int, name: bytes, branch: Branch) -> bytes | None:
    """What set_origin() has said of a copy."""
    return objects.get_mark(fd, name, _prefix(branch) + marks.ORIGIN)


def set_impure(directory: Dir) -> None:
    """Say that a directory of the writable branch may have entries with the inode numbers of lower objects."""
    if not directory.impure:
        objects.set_xattr(directory.fd(), b".", _prefix(directory.branch) + marks.IMPURE, b"y")
        directory.impure = True


def set_opaque(fd: int, name: bytes, branch: Branch) -> None:
    """Let a directory of the writable branch hide all that is below it."""
    objects.set_xattr(fd, name, _prefix(branch) + marks.OPAQUE, marks.OPAQUE_YES)


def set_redirect(fd: int, name: bytes, branch: Branch, redirect: bytes) -> None:
    """Let a directory (or a metadata-only copy) of the writable branch say where its lower parts are."""
    objects.set_xattr(fd, name, _prefix(branch) + marks.REDIRECT, redirect)


def clear_metacopy(fd: int, name: bytes, branch: Branch) -> None:
    """The data have arrived: the file stands for itself from now on, and its redirect says nothing any more."""
    prefix = _prefix(branch)
    objects.remove_xattr(fd, name, prefix + marks.METACOPY)
    with suppress(OSError):
        objects.remove_xattr(fd, name, prefix + marks.REDIRECT)


def _prefix(branch: Branch) -> bytes:
    return _required(branch.xattr_prefix)


def _required(prefix: bytes | None) -> bytes:
    if prefix is None:
        raise OSError(EOPNOTSUPP, "the upper's file system has no xattrs")
    return prefix
