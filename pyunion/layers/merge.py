"""Several layers become one: what they say together of the layers below them, or all that they show.

Owns the comparison of the union with what is below it. A name that only these layers hide becomes a whiteout; a
directory that shows nothing of what is below it, or that was moved, is copied whole and opaque, so that the result has
neither redirects nor metadata-only copies. What a copy of an object is, is pyunion/branch/copyup.py.

An object is made beside the tree and renamed into it. So a merge that was interrupted goes on by looking at what is
there: the order is the same each time, and of what is whole no data are read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from stat import S_IFCHR, S_IFMT, S_ISREG
from typing import NamedTuple

from pyunion.branch import copyup, marks, objects, syscalls
from pyunion.branch.dirs import Branch, Dir
from pyunion.branch.work import remove_tree
from pyunion.errors import PyunionError
from pyunion.layers.indexed import Name
from pyunion.layers.resuming import NEXT, Half
from pyunion.layers.tree import Entry, Parts, Tree
from pyunion.union.merge import Kind, kind_of


class _Pair(NamedTuple):
    """A directory, what was below it, and its copy."""

    path: bytes
    entry: Entry
    below: Parts | None  # None: nothing of it counts
    copy: Dir


_COARSEST = 2_000_000_000  # ns that a file system may round times by


class Merge:
    """Fills one branch, which is empty or was half filled."""

    def __init__(
        self,
        union: Tree,
        below: Tree | None,
        last: int,
        copy: Branch,
        half: Half,
        tell: Callable[[], None],
        more: Iterable[Name] = (),
    ) -> None:
        """`union` are the layers to merge, of which `last` is the lowest one's number, and those `below` them, if there
        are any. `copy` is the tree of `half`. `tell` is called for each object. `more` are names that show something
        else than what is below, though none of the layers has them."""
        self._union = union
        self._below = below
        self._last = last
        self._copy = copy
        self._half = half
        self._tell = tell
        self._more: dict[bytes, set[bytes]] = {}  # by the path of their directory
        for name in more:
            for path in (*(path for path, _ in name.above), name.path):
                self._more.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
        self._number = 0
        self._terms = copyup.Terms(copy.xattr_prefix, sync=False, must_chown=os.geteuid() == 0)
        self._links: dict[tuple[int, int], tuple[Dir, bytes]] = {}

    def run(self) -> None:
        """Raises PyunionError and OSError."""
        root = self._union.root_entry()
        below = None if self._below is None else self._below.root
        todo = [_Pair(b"", root, below, self._copy.root)]
        directories = []
        while todo:
            pair = todo.pop()
            directories.append((pair.copy, pair.entry.st))
            there = set(pair.copy.names())
            for name in sorted(self._names(pair)):
                found = self._object(pair, name, there)
                if found is not None:
                    todo.append(found)
            if there:
                raise _changed(os.path.join(pair.path, there.pop()))
            self._union.trim()
            self._copy.cache.trim()
        copyup.dress(self._copy.root.fd(), b".", root.dir.fd(), root.name, root.st, self._terms)
        for directory, st in reversed(directories):
            if not self._terms.must_chown:
                self._chmod(directory.fd(), b".", st, 0)
            objects.utime(directory.fd(), b".", st.st_atime_ns, st.st_mtime_ns)
            self._copy.cache.trim()

    def _names(self, pair: _Pair) -> Iterable[bytes]:
        """All names that the copy may have to have."""
        if pair.below is None:
            return self._union.names(pair.entry.parts)
        ours = [part for part in pair.entry.parts if part.branch.index <= self._last]
        return {name for part in ours for name, _ in part.entries()} | self._more.get(pair.path, set())

    def _object(self, pair: _Pair, name: bytes, there: set[bytes]) -> _Pair | None:
        """Copy one object unless it is `there`, from which it is taken; a directory to go on with, if it is one."""
        entry = self._union.child(pair.entry.parts, name)
        before = None
        if pair.below is not None and self._below is not None:
            before = self._below.child(pair.below, name)
        if entry is None and before is None:
            return None
        self._number += 1
        self._tell()
        path = os.path.join(pair.path, name)
        is_made = self._is_made(pair.copy, name, entry, path, there)
        if entry is None:
            found = None
            if not is_made:
                os.mknod(NEXT, S_IFCHR, 0, dir_fd=self._half.fd)
                objects.utime(self._half.fd, NEXT, pair.entry.st.st_mtime_ns, pair.entry.st.st_mtime_ns)
                self._put(pair.copy, name)
        elif entry.is_dir:
            found = self._directory(pair, name, entry, before, is_made)
        else:
            found = None
            self._file(pair.copy, name, entry, path, is_made)
        self._half.made(self._number)
        return found

    def _is_made(self, copy: Dir, name: bytes, entry: Entry | None, path: bytes, there: set[bytes]) -> bool:
        """Whether an earlier run has made this object. Raises PyunionError where it was another one then."""
        if name not in there:
            return False
        there.remove(name)
        if not self._half.trusts(self._number):
            remove_tree(copy.fd(), name)
            return False
        st = os.stat(name, dir_fd=copy.fd(), follow_symlinks=False)
        if entry is None:
            is_same = kind_of(st.st_mode, st.st_rdev) is Kind.WHITEOUT
        else:
            is_same = S_IFMT(st.st_mode) == S_IFMT(entry.st.st_mode) and (
                entry.is_dir
                or (st.st_size == entry.st.st_size and abs(st.st_mtime_ns - entry.st.st_mtime_ns) < _COARSEST)
            )
        if not is_same:
            raise _changed(path)
        return True

    def _put(self, copy: Dir, name: bytes) -> None:
        os.rename(NEXT, name, src_dir_fd=self._half.fd, dst_dir_fd=copy.fd())

    def _directory(self, pair: _Pair, name: bytes, entry: Entry, before: Entry | None, is_made: bool) -> _Pair:
        below = before.parts if before is not None and before.is_dir else None
        is_opaque = below is not None and _places(below) != _places(entry.parts, above=self._last)
        if not is_made:
            copyup.stage_other(self._half.fd, NEXT, entry.dir.fd(), entry.name, entry.st, self._terms)
            if is_opaque:
                marks.set_opaque(self._half.fd, NEXT, self._copy)
            if not self._terms.must_chown:
                self._chmod(self._half.fd, NEXT, entry.st, 0o700)
            self._put(pair.copy, name)
        elif not self._terms.must_chown:
            self._chmod(pair.copy.fd(), name, entry.st, 0o700)
        return _Pair(os.path.join(pair.path, name), entry, None if is_opaque else below, pair.copy.child(name))

    def _chmod(self, fd: int, name: bytes, st: os.stat_result, more: int) -> None:
        """A user can fill a directory only while he may write to it; it gets its own mode at the end."""
        copy = os.stat(name, dir_fd=fd, follow_symlinks=False)
        kept = (copy.st_uid, copy.st_gid) == (st.st_uid, st.st_gid)
        syscalls.chmod_nofollow(fd, name, self._terms.mode(st, kept) | more)

    def _file(self, copy: Dir, name: bytes, entry: Entry, path: bytes, is_made: bool) -> None:
        st = entry.st
        if st.st_nlink > 1 or entry.copy_of is not None:  # of what is in the index alone the count says 1
            first = self._links.setdefault((st.st_dev, st.st_ino), (copy, name))
            if first != (copy, name):
                if not is_made:
                    os.link(first[1], name, src_dir_fd=first[0].fd(), dst_dir_fd=copy.fd(), follow_symlinks=False)
                return
        if is_made:
            return
        if S_ISREG(st.st_mode):
            self._data(entry, path)
        else:
            copyup.stage_other(self._half.fd, NEXT, entry.dir.fd(), entry.name, st, self._terms)
        self._put(copy, name)

    def _data(self, entry: Entry, path: bytes) -> None:
        if entry.data is None:
            raise PyunionError(f"{os.fsdecode(path)} has its metadata only, and its data are in none of the branches")
        own = objects.open_file(entry.dir.fd(), entry.name, os.O_RDONLY)
        data = objects.open_file(entry.data[0].fd(), entry.data[1], os.O_RDONLY)
        try:
            copyup.stage_file(self._half.fd, NEXT, copyup.Source(own, data, entry.st), entry.st.st_size, self._terms)
        finally:
            os.close(own)
            os.close(data)


def _changed(path: bytes) -> PyunionError:
    return PyunionError(
        f"{os.fsdecode(path)} is another one than when this work was begun; what was done is removed, so begin again, "
        "and let nobody change the layers meanwhile"
    )


def _places(parts: Parts, above: int = 0) -> list[tuple[int, bytes]]:
    """Which directories of which branches; only of those below number `above`."""
    found = []
    for part in parts:
        if part.branch.index > above:
            names = []
            here: Dir | None = part
            while here is not None:
                names.append(here.name)
                here = here.parent
            found.append((part.branch.index, b"/".join(reversed(names))))
    return found
