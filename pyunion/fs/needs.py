"""What upper needs of the lower branches: whether it would be lost, or be shown as something else, with other ones.

Owns two walks, both by threads: through upper, for the data of metadata-only copies, and through a branch that is to
go, for names of files whose copy only the index has. Knows no nodes of the mount; the walk through upper has a look-up
of its own for each of the two stacks. Changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from stat import S_ISDIR

from pyunion.branch.below import Layers, below
from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.branch.marks import read_file_marks
from pyunion.branch.opening import lower_branches, upper_branch
from pyunion.fs.lookup import Lookup
from pyunion.fs.nodes import Directory, Table
from pyunion.union.merge import Kind
from pyunion.union.numbers import Numbers

_CACHED_DIRS = 256


class Stack:
    """A stack of branches, to look at beside the one that is in use."""

    def __init__(self, upper: Branch, lowers: Sequence[Branch], data: Sequence[Branch], *, follow: bool) -> None:
        self.cache = DirCache(_CACHED_DIRS)
        prefix = upper.xattr_prefix or b""
        top = upper_branch(upper.path, upper.root.fd(), self.cache, prefix)
        rest = lower_branches(
            [(branch.path, branch.root.fd(), branch.remote) for branch in (*lowers, *data)],
            self.cache,
            first_index=1,
            xattr_prefix=prefix,
            aufs=lowers[0].aufs,
            data_only=len(data),
        )
        for branch, known in zip(rest, (*lowers, *data), strict=True):
            branch.root.xwhiteouts = known.root.xwhiteouts
        merged = rest[: len(lowers)]
        merged[-1].is_last = False
        self.root = Directory(None, b"", tuple(branch.root for branch in (top, *merged)))
        table = Table(self.root, Numbers(None, ()))
        self._data = [branch.root for branch in rest[len(lowers) :]]
        self._follow = follow
        self._lookup = Lookup(table, self._data, None, None, follow)

    def directory(self, parent: Directory, name: bytes) -> tuple[Directory, bool]:
        """A directory of upper with all its layers; and whether these could be looked up, else it is as it is shown."""
        found, sure = None, True
        try:
            found = self._lookup.find(parent, name)
        except OSError:
            sure = False
        layers = (parent.layers[0].child(name),) if found is None or not found.layers else found.layers
        return Directory(parent, name, layers), sure

    def data_of(self, parent: Directory, name: bytes, redirect: bytes | None) -> tuple[os.stat_result | None, bool]:
        """The data of a metadata-only copy in upper, None where they are nowhere; and whether that could be seen, else
        its reader gets an error."""
        layers = Layers(parent.layers, self.root.layers, self._data, self._follow)
        data = None
        try:
            for part in below(layers, 0, name, redirect, want_dir=False):
                data = part.dir.stat(part.name)
        except OSError:
            return None, False
        return data, True

    def close(self) -> None:
        """Give back all but the roots, which are not ours."""
        for layer in (*self.root.layers, *self._data):
            self.cache.close_those_of(layer.branch)


def lost_data(before: Stack, after: Stack) -> bytes | None:
    """The path of a metadata-only copy in upper that would have no data, or other ones, in the other stack. One whose
    data cannot be reached loses nothing, but is not to have those of another file."""
    todo = [(before.root, after.root, True)]
    while todo:
        old, new, sure = todo.pop()
        try:
            entries = list(old.layers[0].entries())
            for name, kind in entries:
                if kind is Kind.DIRECTORY:
                    found, found_sure = before.directory(old, name)
                    todo.append((found, after.directory(new, name)[0], sure and found_sure))
                elif kind is Kind.OTHER and (marked := read_file_marks(old.layers[0], name)).metacopy:
                    had, seen = before.data_of(old, name, marked.redirect)
                    has, _ = after.data_of(new, name, marked.redirect)
                    if _differ(had, has, sure and seen):
                        return old.path() + b"/" + name
        except FileNotFoundError:
            pass  # gone meanwhile
        before.cache.trim()
        after.cache.trim()
    return None


def _differ(had: os.stat_result | None, has: os.stat_result | None, sure: bool) -> bool:
    if had is None or has is None:
        return had is not has and (had is not None or not sure)
    return not os.path.samestat(had, has)


def lost_names(index: Index, origins: Origins, remaining: Origins, branches: Sequence[Branch]) -> bytes | None:
    """A hard-linked file of lower branches that are to go whose copy would be found by nothing any more: its path in
    its branch, or the name of its entry in the index. `remaining` are the origins without these branches."""
    wanted: dict[tuple[int, int], bytes] = {}
    for name in index.dir.names():
        origin = _origin_of(name)
        lower = None if origin is None else origins.stat(origin)
        copy = index.find(name)
        if origin is None or lower is None or copy is None or S_ISDIR(copy.st_mode):
            continue
        if remaining.stat(origin) is None:
            return name
        if index.hidden_links(name, copy, lower.st_nlink) < 1:  # it has names that have no link in upper
            wanted[lower.st_dev, lower.st_ino] = name
    for branch in branches if wanted else ():
        found = _name_of(branch, wanted)
        if found is not None:
            return found
    return None


def _origin_of(name: bytes) -> bytes | None:
    try:
        return bytes.fromhex(name.decode("ascii"))
    except ValueError:  # not an entry
        return None


def _name_of(branch: Branch, wanted: dict[tuple[int, int], bytes]) -> bytes | None:
    """A path in a branch at which one of these files is."""
    cache = DirCache(_CACHED_DIRS)
    view = Branch(branch.index, branch.path, branch.root.fd(), cache)
    todo: list[tuple[Dir, bytes]] = [(view.root, b"")]
    try:
        while todo:
            directory, path = todo.pop()
            for name in directory.names():
                st = directory.stat(name)
                if st is None:
                    continue
                if S_ISDIR(st.st_mode):
                    todo.append((directory.child(name), path + b"/" + name))
                elif (st.st_dev, st.st_ino) in wanted:
                    return path + b"/" + name
            cache.trim()
    finally:
        cache.close_those_of(view)
    return None
