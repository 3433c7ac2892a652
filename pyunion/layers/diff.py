"""What the writable layer changes: the union held against the one without it, as `docker diff` does.

Owns what counts as a change, and of which kind. Reads metadata only, and nothing outside of the directories that upper
has, but where one was moved: it is new as a whole; and where a changed file has names without a link in upper
(pyunion/layers/indexed.py): these are looked for in the layers below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import NamedTuple

from pyunion.branch import objects
from pyunion.branch.handles import Origins
from pyunion.layers import indexed
from pyunion.layers.comparing import differences, stat_differences
from pyunion.layers.tree import Branches, Copies, Entry
from pyunion.union import marks

_TRIES = 20
ADDED, CHANGED, DELETED = "A", "C", "D"

_TYPES = {
    S_IFREG: "file",
    S_IFDIR: "directory",
    S_IFLNK: "symlink",
    S_IFCHR: "character device",
    S_IFBLK: "block device",
    S_IFIFO: "fifo",
    S_IFSOCK: "socket",
}


class Change(NamedTuple):
    """One path that differs."""

    kind: str
    path: bytes  # with a leading slash
    type: str | None = None  # of what is there now
    was: str | None = None  # of what was there; None where that is not known
    size: int | None = None  # bytes of a file
    size_was: int | None = None
    what: tuple[str, ...] = ()  # of a changed object: type, content, times, mode, owner, xattrs, device, entries
    opaque: bool = False  # a directory that hides all that is below it
    redirect: bytes | None = None  # where a moved directory's lower parts are
    metadata_only: bool = False  # the data are those of the layers below


def changes(branches: Branches) -> list[Change]:
    """All changes, sorted by path. A deleted directory is one change; an added one is listed with all it shows.

    Without lower branches what a copy comes from is known by its origin mark (overlayfs.rst, "Inode properties"), and a
    moved directory's lower parts are not listed. Upper may be mounted; it is gone through again if something moves
    meanwhile. Raises OSError.
    """
    for tries_left in reversed(range(_TRIES)):
        with ExitStack() as stack:
            walk = _Walk(branches, stack)
            try:
                walk.run()
                walk.find_other_names(branches.copies)
            except OSError as error:
                if error.errno not in objects.GONE or not tries_left:
                    raise
            else:
                break
    return sorted(walk.found.values(), key=lambda change: change.path.replace(b"/", b"\0"))  # name by name


class _Pair(NamedTuple):
    """A directory of the union, and what was there before."""

    path: bytes
    after: Entry
    before: Entry | None
    known: bool  # what is below upper is what was there before, so that only upper's own entries can differ


class _Walk:
    def __init__(self, branches: Branches, stack: ExitStack) -> None:
        assert branches.upper is not None
        self.found: dict[bytes, Change] = {}
        self._after = branches.union
        self._before = branches.below
        self._origins = Origins(branches.lowers or [branches.upper], stack)
        self._prefix = branches.upper.prefix_to_read

    def run(self) -> None:
        before = self._before.root_entry() if self._before is not None else None
        todo = [_Pair(b"", self._after.root_entry(), before, True)]
        while todo:
            pair = todo.pop()
            for name in self._names(pair):
                below = self._compare(pair, name)
                if below is not None:
                    todo.append(below)
            self._after.trim()

    def _names(self, pair: _Pair) -> Iterator[bytes]:
        if pair.known:
            yield from [name for name, _ in pair.after.parts[0].entries()]
            return
        names = self._after.names(pair.after.parts)
        yield from names
        if pair.before is not None and self._before is not None:
            yield from (name for name in self._before.names(pair.before.parts) if name not in names)

    def _compare(self, pair: _Pair, name: bytes) -> _Pair | None:
        """Record what differs under one name; a directory to go on with, if there is one."""
        path = pair.path + b"/" + name
        after = self._after.child(pair.after.parts, name)
        if self._before is None:
            return self._compare_alone(pair, path, name, after)
        before = None if pair.before is None else self._before.child(pair.before.parts, name)
        if after is None:
            if before is not None:
                self._record(Change(DELETED, path, was=_type(before.st), size_was=_size(before.st)))
            return None
        if before is None:
            self._record(_added(path, after))
        else:
            what = differences(after, before)
            if what:
                self._record(_changed(path, after, before.st, what))
        if not after.is_dir:
            return None
        both = before is not None and before.is_dir
        known = pair.known and both and not after.opaque and after.redirect is None
        if known and not after.dir.branch.is_upper:
            return None
        return _Pair(path, after, before if both else None, known)

    def _compare_alone(self, pair: _Pair, path: bytes, name: bytes, after: Entry | None) -> _Pair | None:
        if after is None:
            self._record(Change(DELETED, path))
            return None
        inside_new = pair.path in self.found and self.found[pair.path].kind == ADDED
        copied_from = None if inside_new or after.redirect is not None else self._mark(after, marks.ORIGIN)
        if copied_from is None:
            self._record(_added(path, after))
        else:
            st = self._origins.stat(copied_from)
            what = () if st is None else stat_differences(after, st)
            if (st is None and not after.is_dir) or what:
                self._record(_changed(path, after, st, what))
        return _Pair(path, after, None, True) if after.is_dir else None

    def find_other_names(self, copies: Copies) -> None:
        """Those names of changed files that have no link in upper; anywhere below it."""
        if self._before is None or not copies:
            return
        for name in indexed.names(self._after, copies):
            path = b"/" + name.path
            before = self._before.find(name.path)
            what = () if before is None else differences(name.entry, before)
            if before is not None and what:
                self._record(_changed(path, name.entry, before.st, what))
            self._before.trim()

    def _mark(self, entry: Entry, name: bytes) -> bytes | None:
        return objects.get_mark(entry.dir.fd(), entry.name, self._prefix + name)

    def _record(self, change: Change) -> None:
        """A directory in which something has changed has changed."""
        self.found[change.path] = change
        path = change.path.rpartition(b"/")[0]
        while path and path not in self.found:
            self.found[path] = Change(CHANGED, path, _TYPES[S_IFDIR], _TYPES[S_IFDIR], what=("entries",))
            path = path.rpartition(b"/")[0]


def _added(path: bytes, after: Entry) -> Change:
    return Change(
        ADDED, path, _type(after.st), None, _size(after.st), None, (), after.opaque, after.redirect, after.metacopy
    )  # fmt: skip


def _changed(path: bytes, after: Entry, before: os.stat_result | None, what: tuple[str, ...]) -> Change:
    return Change(
        CHANGED,
        path,
        _type(after.st),
        None if before is None else _type(before),
        _size(after.st),
        None if before is None else _size(before),
        what,
        after.opaque,
        after.redirect,
        after.metacopy,
    )


def _type(st: os.stat_result) -> str:
    return _TYPES[S_IFMT(st.st_mode)]


def _size(st: os.stat_result) -> int | None:
    return st.st_size if S_IFMT(st.st_mode) == S_IFREG else None
