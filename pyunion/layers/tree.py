"""A union read without a mount: from the parts of a directory and a name to the object, and to what it consists of.

Owns how a list of branches becomes a tree that can be walked. Who wins is pyunion/union/merge.py, what belongs to an
entry in the layers below it is pyunion/branch/below.py. Changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from stat import S_IFMT, S_ISDIR, S_ISREG
from types import MappingProxyType
from typing import NamedTuple

from pyunion.branch import opening
from pyunion.branch.below import Layers, Part, below
from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.marks import read_dir_marks, read_file_marks
from pyunion.union import marks
from pyunion.union.merge import Kind, merge_listings

_MOST_OPEN = 256

Parts = tuple[Dir, ...]


class Copy(NamedTuple):
    """What a lower file of several names has become by a change under one of them (pyunion/layers/indexed.py)."""

    dir: Dir  # where the copy is
    name: bytes
    missing: int  # so many names of the union have no link in upper, and show it all the same
    lower: os.stat_result


Copies = Mapping[tuple[int, int], Copy]  # by device and inode number of the lower file
_NONE: Copies = MappingProxyType({})


class Entry(NamedTuple):
    """An object of a union, and where it is."""

    st: os.stat_result  # of its topmost part
    dir: Dir
    name: bytes
    parts: Parts = ()  # a directory's layers, topmost first
    opaque: bool = False
    redirect: bytes | None = None
    metacopy: bool = False  # its data are somewhere else
    data: tuple[Dir, bytes] | None = None  # where a regular file's data are; None: nowhere
    origin: bytes | None = None
    copy_of: Entry | None = None  # the lower file that has this name, which only the index makes a name of the copy

    @property
    def is_dir(self) -> bool:
        return S_ISDIR(self.st.st_mode)


class Tree:
    """The union of some branches, topmost first."""

    def __init__(self, branches: Sequence[Branch], data: Sequence[Branch] = (), copies: Copies = _NONE) -> None:
        self.root: Parts = tuple(branch.root for branch in branches)
        self._copies = copies
        self._data = tuple(branch.root for branch in data)

    def root_entry(self) -> Entry:
        top = self.root[0]
        return Entry(os.fstat(top.fd()), top, b".", self.root)

    def names(self, parts: Parts) -> dict[bytes, int]:
        """The names of a directory, each with the position of the part whose entry wins."""
        return merge_listings((position, part.entries()) for position, part in enumerate(parts))

    def child(self, parts: Parts, name: bytes) -> Entry | None:
        """The object under a name; None where there is none."""
        for position, part in enumerate(parts):
            st = part.stat(name)
            if st is None:
                continue
            kind = part.kind(name, st)
            if kind is Kind.WHITEOUT:
                return None
            if kind is Kind.DIRECTORY:
                return self._directory(parts, position, name, st)
            return self._other(parts, position, name, st)
        return None

    def trim(self) -> None:
        """Give back descriptors that are not needed now; between the directories of a walk, however deep it goes."""
        for cache in {part.branch.cache for part in (*self.root, *self._data)}:
            cache.trim()

    def find(self, path: bytes) -> Entry | None:
        """The object at a path of names without a leading slash."""
        entry: Entry | None = self.root_entry()
        for name in path.split(b"/") if path else ():
            if entry is None or not entry.is_dir:
                return None
            entry = self.child(entry.parts, name)
        return entry

    def _directory(self, parts: Parts, position: int, name: bytes, st: os.stat_result) -> Entry:
        part = parts[position]
        top = part.child(name)
        if part.branch.is_last:
            return Entry(st, part, name, (top,))
        found = read_dir_marks(part, name)
        top.xwhiteouts = found.xwhiteouts
        stack = [top]
        if not found.opaque:
            for lower in self._below(parts, part, name, found.redirect, want_dir=True):
                child = lower.dir.child(lower.name)
                child.xwhiteouts = lower.xwhiteouts
                stack.append(child)
        return Entry(st, part, name, tuple(stack), found.opaque, found.redirect)

    def _other(self, parts: Parts, position: int, name: bytes, st: os.stat_result) -> Entry:
        part = parts[position]
        found = read_file_marks(part, name)
        data: tuple[Dir, bytes] | None = (part, name)
        metacopy = found.metacopy and S_ISREG(st.st_mode) and (part.branch.data_below or not part.branch.is_last)
        if metacopy:
            data = None
            for lower in self._below(parts, part, name, found.redirect, want_dir=False):
                data = (lower.dir, lower.name)
        entry = Entry(
            st, part, name, redirect=found.redirect, metacopy=metacopy, data=data, origin=found.origin
        )  # fmt: skip
        if st.st_nlink > 1 and not part.branch.is_upper:
            copy = self._copies.get((st.st_dev, st.st_ino))
            return entry if copy is None else _shown_by(copy, entry)
        return entry

    def _below(
        self, parts: Parts, part: Dir, name: bytes, redirect: bytes | None, *, want_dir: bool
    ) -> Iterator[Part]:
        layers = Layers(parts, self.root, self._data)
        return below(layers, part.branch.index, name, redirect, want_dir=want_dir)


def _shown_by(copy: Copy, lower: Entry) -> Entry:
    """What a name of a lower file shows when there is a copy of that."""
    st = copy.dir.stat(copy.name)
    if st is None or S_IFMT(st.st_mode) != S_IFMT(lower.st.st_mode):
        return lower
    found = read_file_marks(copy.dir, copy.name)
    data = lower.data if found.metacopy else (copy.dir, copy.name)
    return Entry(
        st, copy.dir, copy.name, metacopy=found.metacopy, data=data, origin=found.origin, copy_of=lower
    )  # fmt: skip


class Branches(NamedTuple):
    """The branches that the user has named, open."""

    upper: Branch | None
    lowers: list[Branch]
    data: list[Branch]
    copies: Copies = _NONE  # of lower files that were changed by another name

    @property
    def union(self) -> Tree:
        return Tree([*([self.upper] if self.upper else []), *self.lowers], self.data, self.copies)

    @property
    def below(self) -> Tree | None:
        """The union without upper."""
        return Tree(self.lowers, self.data) if self.lowers else None


def open_branches(
    upper: bytes | None,
    lowers: Sequence[bytes],
    stack: ExitStack,
    *,
    data_only: int = 0,
    prefix: bytes | None = None,
    writable: bool = False,
) -> Branches:
    """Open branches, but for a `writable` upper through views that admit no change; `stack` closes them.

    Raises PyunionError.

    `prefix` is that of the marks; without one it is what a mount by this user would read.
    """
    prefix = prefix or default_prefix()
    cache = DirCache(_MOST_OPEN)
    top = None if upper is None else opening.open_upper(upper, cache, stack, prefix, read_only=not writable)
    opened = opening.open_lowers(
        lowers, cache, stack, first_index=1, xattr_prefix=prefix, aufs=False, data_only=data_only
    )
    merged = len(opened) - data_only
    return Branches(top, opened[:merged], opened[merged:])


def default_prefix() -> bytes:
    return marks.TRUSTED if os.geteuid() == 0 else marks.USER
