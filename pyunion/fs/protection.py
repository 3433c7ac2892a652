"""What chattr(1) forbids: changing what is immutable, and changing what is append-only but for adding to it.

Owns the rules, which are the kernel's for every file system (may_delete, may_open, may_setattr, xattr_permission in its
fs/). For a FUSE mount the kernel does not know the flags and asks nothing; so each change asks here before anything is
copied. What a file system of upper holds itself it refuses itself.
"""

from __future__ import annotations

import os
from errno import EPERM

from pyunion.branch import objects
from pyunion.fs.nodes import File, Node
from pyunion.union.marks import APPEND, IMMUTABLE

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_WRITES = os.O_WRONLY | os.O_RDWR


def require_changeable(node: Node) -> None:
    """For attributes, xattrs, further names and the end of names; for a directory, the end of names in it. Raises
    EPERM."""
    _refuse(node, APPEND | IMMUTABLE)


def require_mutable(node: Node) -> None:
    """For setting times to "now"; for a directory, new names in it. Raises EPERM."""
    _refuse(node, IMMUTABLE)


def require_open(file: File, flags: int) -> None:
    """For open(2) with these flags. Raises EPERM."""
    if flags & (_WRITES | os.O_TRUNC):
        appends = flags & os.O_APPEND and not flags & os.O_TRUNC
        _refuse(file, IMMUTABLE if appends else APPEND | IMMUTABLE)


def require_allocation(file: File, mode: int) -> None:
    """For fallocate(2) by a descriptor that was opened for writing, perhaps before. Raises EPERM."""
    _refuse(file, APPEND | IMMUTABLE if mode & ~_KEEP_SIZE else IMMUTABLE)


def require_copying_into(file: File) -> None:
    """For copy_file_range(2) to a descriptor that was opened for writing, perhaps before. Raises EPERM."""
    _refuse(file, IMMUTABLE)


def _refuse(node: Node, flags: int) -> None:
    held = node.protection if node.in_upper else node.ask(objects.protection)
    if held & flags:
        raise OSError(EPERM, os.strerror(EPERM), node.name)
