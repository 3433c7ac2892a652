"""What a tree holds, as a value that can be compared: one Entry for each path below a directory.

Walks by directory descriptors, so any bytes are a name and no path is too long; opens regular files only, so
nothing in the tree can block it. Knows nothing of unions but the prefix of overlayfs's own xattrs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MARK_PREFIX = b"trusted.overlay."
# Marks that change what a union shows. The others (origin, impure, nlink, uuid) serve the kernel's own index
# and inode numbers, and two file systems that agree on the tree may differ in them.
TELLING_MARKS = frozenset(_MARK_PREFIX + name for name in (b"opaque", b"redirect", b"metacopy", b"whiteout"))


class Entry(NamedTuple):
    """One object. A directory's size and link count and a whiteout's link count are nobody's business: 0 here."""

    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    content: str
    target: bytes
    rdev: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    mtime_ns: int


Snapshot = dict[bytes, Entry]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def kind_of(mode: int) -> str:
    return _KINDS[stat.S_IFMT(mode)]


def snapshot(top: Path | bytes, *, times: bool = True, origin_marks: bool = True) -> Snapshot:
    """All that `top` holds, itself under the name b".".

    Without origin_marks, only those of overlayfs's xattrs are taken that change the union's tree.
    """
    fd = os.open(os.fsencode(top), _OPEN_DIR & ~os.O_NOFOLLOW)
    try:
        entries = {b".": _describe(fd, b"", os.fstat(fd), times, origin_marks)}
        entries.update(_walk(fd, b"", times, origin_marks))
    finally:
        os.close(fd)
    return entries


def _walk(dir_fd: int, prefix: bytes, times: bool, origin_marks: bool) -> Iterator[tuple[bytes, Entry]]:
    names = [os.fsencode(name) for name in os.listdir(dir_fd)]
    assert len(names) == len(set(names)), f"a name is listed twice in {prefix!r}"
    for name in sorted(names):
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        yield prefix + name, _describe(dir_fd, name, st, times, origin_marks)
        if stat.S_ISDIR(st.st_mode):
            below = os.open(name, _OPEN_DIR, dir_fd=dir_fd)
            try:
                yield from _walk(below, prefix + name + b"/", times, origin_marks)
            finally:
                os.close(below)


def _describe(dir_fd: int, name: bytes, st: os.stat_result, times: bool, origin_marks: bool) -> Entry:
    form = stat.S_IFMT(st.st_mode)
    is_whiteout = form == stat.S_IFCHR and st.st_rdev == 0
    return Entry(
        kind=_KINDS[form],
        mode=stat.S_IMODE(st.st_mode),
        uid=st.st_uid,
        gid=st.st_gid,
        nlink=0 if form == stat.S_IFDIR or is_whiteout else st.st_nlink,
        size=0 if form == stat.S_IFDIR else st.st_size,
        content=_digest(dir_fd, name) if form == stat.S_IFREG else "",
        target=os.readlink(name, dir_fd=dir_fd) if form == stat.S_IFLNK else b"",
        rdev=st.st_rdev if form in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        xattrs=_xattrs(dir_fd, name, origin_marks),
        mtime_ns=st.st_mtime_ns if times else 0,
    )


def _digest(dir_fd: int, name: bytes) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    with open(fd, "rb") as file:
        return hashlib.sha1(file.read(), usedforsecurity=False).hexdigest()


def _xattrs(dir_fd: int, name: bytes, origin_marks: bool) -> tuple[tuple[bytes, bytes], ...]:
    path = b"/proc/self/fd/%d/%b" % (dir_fd, name or b".")
    try:
        keys = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # as a file system without xattrs answers
            raise
        keys = []
    found = []
    for key in sorted(map(os.fsencode, keys)):
        if origin_marks or not key.startswith(_MARK_PREFIX) or key in TELLING_MARKS:
            found.append((key, os.getxattr(path, key, follow_symlinks=False)))
    return tuple(found)


def differences(left: Snapshot, right: Snapshot) -> list[str]:
    """What differs between two snapshots, one line each; empty when they are equal."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        a, b = left.get(path), right.get(path)
        if a is None or b is None:
            lines.append(f"{os.fsdecode(path)!r}: {a and a.kind} | {b and b.kind}")
        elif a != b:
            fields = (f for f in Entry._fields if getattr(a, f) != getattr(b, f))
            said = ", ".join(f"{f} {getattr(a, f)!r} | {getattr(b, f)!r}" for f in fields)
            lines.append(f"{os.fsdecode(path)!r}: {said}")
    return lines


def assert_same(left: Snapshot, right: Snapshot, what: str) -> None:
    lines = differences(left, right)
    assert not lines, f"{what}:\n  " + "\n  ".join(lines[:40])
