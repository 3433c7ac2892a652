"""Several layers become one: what they say together of the layers below them, or all that they show.

Owns the comparison of the union with what is below it. A name that only these layers hide becomes a whiteout; a
directory that shows nothing of what is below it, or that was moved, is copied whole and opaque, so that the result has
neither redirects nor metadata-only copies. What a copy of an object is, is pyunion/branch/copyup.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from stat import S_IFCHR, S_ISREG
from typing import NamedTuple

from pyunion.branch import copyup, marks, objects
from pyunion.branch.dirs import Branch, Dir
from pyunion.errors import PyunionError
from pyunion.layers.tree import Entry, Parts, Tree


class _Pair(NamedTuple):
    """A directory, what was below it, and its copy."""

    path: bytes
    entry: Entry
    below: Parts | None  # None: nothing of it counts
    copy: Dir


class Merge:
    """Fills one empty branch."""

    def __init__(self, union: Tree, below: Tree | None, last: int, copy: Branch, tell: Callable[[], None]) -> None:
        """`union` are the layers to merge, of which `last` is the lowest one's number, and those `below` them, if there
        are any. `tell` is called for each object."""
        self._union = union
        self._below = below
        self._last = last
        self._copy = copy
        self._tell = tell
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
            for name in sorted(self._names(pair)):
                found = self._object(pair, name)
                if found is not None:
                    todo.append(found)
            for cache in {branch.branch.cache for branch in (*self._union.root, self._copy.root)}:
                cache.trim()
        copyup.dress(self._copy.root.fd(), b".", root.dir.fd(), root.name, root.st, self._terms)
        for directory, st in directories:
            objects.utime(directory.fd(), b".", st.st_atime_ns, st.st_mtime_ns)
            self._copy.cache.trim()

    def _names(self, pair: _Pair) -> Iterable[bytes]:
        """All names that the copy may have to have."""
        if pair.below is None:
            return self._union.names(pair.entry.parts)
        ours = [part for part in pair.entry.parts if part.branch.index <= self._last]
        return {name for part in ours for name, _ in part.entries()}

    def _object(self, pair: _Pair, name: bytes) -> _Pair | None:
        """Copy one object; a directory to go on with, if it is one."""
        entry = self._union.child(pair.entry.parts, name)
        before = None
        if pair.below is not None and self._below is not None:
            before = self._below.child(pair.below, name)
        if entry is None:
            if before is not None:
                os.mknod(name, S_IFCHR, 0, dir_fd=pair.copy.fd())
            return None
        self._tell()
        path = os.path.join(pair.path, name)
        if not entry.is_dir:
            self._file(pair.copy, name, entry, path)
            return None
        copyup.stage_other(pair.copy.fd(), name, entry.dir.fd(), entry.name, entry.st, self._terms)
        below = before.parts if before is not None and before.is_dir else None
        if below is not None and _places(below) != _places(entry.parts, above=self._last):
            marks.set_opaque(pair.copy.fd(), name, self._copy)
            below = None
        return _Pair(path, entry, below, pair.copy.child(name))

    def _file(self, copy: Dir, name: bytes, entry: Entry, path: bytes) -> None:
        st = entry.st
        if st.st_nlink > 1:
            first = self._links.setdefault((st.st_dev, st.st_ino), (copy, name))
            if first != (copy, name):
                os.link(first[1], name, src_dir_fd=first[0].fd(), dst_dir_fd=copy.fd(), follow_symlinks=False)
                return
        if not S_ISREG(st.st_mode):
            copyup.stage_other(copy.fd(), name, entry.dir.fd(), entry.name, st, self._terms)
            return
        if entry.data is None:
            raise PyunionError(f"{os.fsdecode(path)} has its metadata only, and its data are in none of the branches")
        own = objects.open_file(entry.dir.fd(), entry.name, os.O_RDONLY)
        data = objects.open_file(entry.data[0].fd(), entry.data[1], os.O_RDONLY)
        try:
            copyup.stage_file(copy.fd(), name, copyup.Source(own, data, st), st.st_size, self._terms)
        finally:
            os.close(own)
            os.close(data)


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
