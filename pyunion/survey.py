"""What the branches of a running union hold under a path, shown or hidden, and what hides it.

Owns the walk down all branches at once. They are reached by the daemon's own descriptors, which are the branches
whatever was mounted over or renamed since, and in whatever mount namespace. What the union shows is decided by
pyunion/fs/lookup.py, as in the daemon; here is told what else is there. Only reads, and never through the mount.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG
from typing import Any, NamedTuple

from pyunion.branch import opening
from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.branch.marks import read_dir_marks, read_file_marks
from pyunion.fs.lookup import Found, Lookup
from pyunion.fs.nodes import Directory, Table
from pyunion.union import marks
from pyunion.union.merge import Kind
from pyunion.union.numbers import Numbers

_CACHED_DIRS = 256
_INDEX = b"index"  # no path of a branch: those are absolute
_FORMS = ((S_ISREG, "file"), (S_ISLNK, "symlink"), (S_ISFIFO, "fifo"), (S_ISCHR, "device"), (S_ISBLK, "device"))


class Held(NamedTuple):
    """What one branch has under a name."""

    branch: Branch
    path: bytes  # within the branch, with a leading slash
    what: str  # directory, file, symlink, fifo, socket, device, whiteout
    marks: dict[str, str]  # opaque, redirect, metacopy, origin, as far as it has them

    @property
    def place(self) -> tuple[Branch, bytes]:
        return self.branch, self.path


class Entry(NamedTuple):
    """What one branch has to do with a path of the union."""

    held: Held
    part: str  # shown, merged (of a directory, below its top), data (of a metadata-only copy), hides, hidden
    by: Held | None  # what hides it


class Child(NamedTuple):
    """An entry of the union, and the branches that it comes from, topmost first."""

    name: bytes
    branches: list[Branch]
    node: Directory | None  # if it is one
    data: Branch | None  # which has the data of a metadata-only copy
    redirect: bytes | None

    @property
    def is_directory(self) -> bool:
        return self.node is not None


class Stack(NamedTuple):
    """All that the branches have under a path, topmost first; `shown` says whether the union shows it."""

    shown: bool
    what: str | None
    entries: list[Entry]


class Survey:
    """The branches of one running mount. The stack closes their descriptors."""

    def __init__(self, pid: int, published: dict[str, Any], stack: ExitStack) -> None:
        daemon = published["daemon"]
        cache = DirCache(_CACHED_DIRS)
        fds = [_open(pid, fd, stack) for fd in daemon["branches"]]
        prefix = os.fsencode(daemon["xattr_prefix"])
        paths = [os.fsencode(path) for path in (published["upper"], *published["lowers"]) if path is not None]
        has_upper = published["upper"] is not None
        upper = [opening.upper_branch(paths[0], fds[0], cache, prefix)] if has_upper else []
        lowers = opening.lower_branches(
            [(path, fd, None) for path, fd in zip(paths, fds, strict=True)][has_upper:],
            cache,
            first_index=int(has_upper),
            xattr_prefix=prefix,
            aufs=published["aufs"],
            data_only=published["data_only"],
        )
        for branch in lowers:
            opening.read_root_mark(branch)
        self.branches = [*upper, *lowers]  # topmost first
        self._merged = len(self.branches) - published["data_only"]
        self.root = Directory(None, b"", tuple(branch.root for branch in self.branches[: self._merged]))
        origins = index = None
        if daemon["index"] is not None:
            origins = Origins(lowers[: len(lowers) - published["data_only"]], stack)
            index = Index(Branch(0, _INDEX, _open(pid, daemon["index"], stack), cache, is_upper=True))
        # Numbers are of no use here, and the look-up needs the table for its root only.
        table = Table(self.root, Numbers(None, ()))
        data = [branch.root for branch in self.branches[self._merged :]]
        self._cache = cache
        self._lookup = Lookup(table, data, origins, index, published["follow_redirects"])

    def role(self, branch: Branch) -> str:
        """upper, lower, data, or index for the directory of copies that have several names."""
        if branch.path == _INDEX:
            return "index"
        if branch.is_upper:
            return "upper"
        return "lower" if branch in self.branches[: self._merged] else "data"

    def _directory(self, path: bytes) -> Directory | None:
        here = self.root
        for name in _names(path):
            below = self.look(here, name)
            if not isinstance(below, Directory):
                return None
            here = below
        return here

    def look(self, parent: Directory, name: bytes) -> Directory | Found | None:
        """An entry of a merged directory: a directory to go on with, anything else, or None."""
        if len(self._cache) > self._cache.limit:
            self._cache.trim()
        found = self._lookup.find(parent, name)
        if found is None or not found.layers:
            return found
        below = Directory(parent, name, found.layers)
        below.redirect = found.redirect
        return below

    def children(self, parent: Child) -> Iterator[Child]:
        """All entries of a directory, by name."""
        assert parent.node is not None
        for name in sorted(self._lookup.listing(parent.node)):
            child = self.look(parent.node, name)
            if child is not None:
                yield _as_child(name, child)

    def top(self, path: bytes) -> Child | None:
        """The directory at a path of the union; None where it shows none."""
        directory = self._directory(path)
        return None if directory is None else _as_child(directory.name, directory)

    def stack(self, path: bytes) -> Stack:
        """What every branch has under a path, which need not exist."""
        walk = _Walk(self)
        names = _names(path)
        if not names:
            roots = [Held(layer.branch, b"/", "directory", {}) for layer in self.root.layers]
            parts = ["shown", *("merged" for _ in roots[1:])]
            entries = [Entry(held, part, None) for held, part in zip(roots, parts, strict=True)]
            return Stack(True, "directory", entries)
        for name in names[:-1]:
            walk.step(name)
        return walk.last(names[-1])


Place = tuple[Branch, bytes]


class _Walk:
    """Down all branches at once: the merged directory as long as there is one, and beside it what no look-up sees."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._merged: Directory | None = survey.root
        # Directories that the union does not show, each with what hides it.
        self._hidden: list[tuple[Dir, Held | None]] = []

    def step(self, name: bytes) -> None:
        """Into the directory of this name, where there is one."""
        found, child, parts = self._look(name)
        self._hidden = [
            (directory.child(name), by)
            for directory, held, by in found
            if held.what == "directory" and held.place not in parts
        ]
        self._merged = child if isinstance(child, Directory) else None

    def last(self, name: bytes) -> Stack:
        """All about the last name of a path."""
        found, child, parts = self._look(name)
        entries = [Entry(held, parts.pop(held.place, _other_part(held, by)), by) for _, held, by in found]
        # What is left is under another path, by a redirect or in the index, or in a data-only branch.
        for (branch, path), part in parts.items():
            held = _held_at(branch, path)
            if held is not None:
                entries.append(Entry(held, part, None))
        entries.sort(key=lambda entry: entry.held.branch.index)
        shown = next((entry.held.what for entry in entries if entry.part == "shown"), None)
        return Stack(child is not None, shown, entries)

    def _look(
        self, name: bytes
    ) -> tuple[list[tuple[Dir, Held, Held | None]], Directory | Found | None, dict[Place, str]]:
        """What the branches have under a name, each with its directory and with what hides it; what the union shows;
        and the places that it shows that from, each with its part in it."""
        layers = () if self._merged is None else self._merged.layers
        child = None if self._merged is None else self._survey.look(self._merged, name)
        parts = {} if child is None else _parts(child, layers[0], name)
        found: list[tuple[Dir, Held, Held | None]] = []
        stop: Held | None = None
        for layer in layers:
            held = _held(layer, name)
            if held is not None:
                by = None if held.place in parts else stop
                if by is None and held.place not in parts and found and held.what != "whiteout":
                    by = found[0][1]  # not like what is above it
                found.append((layer, held, by))
                stop = stop or _ending(held)
        for directory, by in self._hidden:
            held = _held(directory, name)
            if held is not None:
                found.append((directory, held, by))
        return found, child, parts


def _as_child(name: bytes, child: Directory | Found) -> Child:
    if isinstance(child, Directory):
        return Child(name, [layer.branch for layer in child.layers], child, None, child.redirect)
    return Child(name, [child.dir.branch], None, child.data[0].branch if child.data else None, None)


def _parts(child: Directory | Found, top: Dir, name: bytes) -> dict[Place, str]:
    if isinstance(child, Directory):
        return {
            (layer.branch, _path_of(layer)): "merged" if number else "shown"
            for number, layer in enumerate(child.layers)
        }
    directory = child.dir
    if child.entry is not None and top.stat(name) is not None:
        parts = {(top.branch, _path_of(top) + b"/" + name): "shown"}  # a link of the entry in the index
    else:
        parts = {(directory.branch, _path_of(directory) + b"/" + child.name): "shown"}
    if child.data is not None:
        directory, real = child.data
        parts[directory.branch, _path_of(directory) + b"/" + real] = "data"
    return parts


def _held_at(branch: Branch, path: bytes) -> Held | None:
    *above, name = _names(path)
    directory = branch.root
    for part in above:
        directory = directory.child(part)
    return _held(directory, name)


def _other_part(held: Held, by: Held | None) -> str:
    """The part of what the union does not show: it may be what hides others."""
    return "hides" if held.what == "whiteout" and by is None else "hidden"


def _held(directory: Dir, name: bytes) -> Held | None:
    """What a directory of a branch has under a name, an AUFS mark for it included."""
    st = directory.stat(name)
    path = _path_of(directory)
    branch = directory.branch
    if st is None or (branch.aufs and name.startswith(marks.AUFS_PREFIX)):
        if directory.aufs_hides(name):
            return Held(branch, path + b"/" + marks.AUFS_PREFIX + name, "whiteout", {})
        return None
    path += b"/" + name
    if directory.kind(name, st) is Kind.WHITEOUT:
        return Held(branch, path, "whiteout", {})
    if S_ISDIR(st.st_mode):
        found = read_dir_marks(directory, name)
        said = {"opaque": "y"} if found.opaque else {}
        if found.redirect is not None:
            said["redirect"] = os.fsdecode(found.redirect)
        return Held(branch, path, "directory", said)
    what = next((word for is_form, word in _FORMS if is_form(st.st_mode)), "socket")
    marked = read_file_marks(directory, name)
    said = {"metacopy": "y"} if marked.metacopy else {}
    if marked.redirect is not None:
        said["redirect"] = os.fsdecode(marked.redirect)
    if marked.origin is not None:
        said["origin"] = "y"
    return Held(branch, path, what, said)


def _ending(held: Held) -> Held | None:
    """Whether it ends the merging of its name: whatever is no directory does, and a directory that is opaque or has its
    lower parts under another name."""
    merges = held.what == "directory" and not held.marks.keys() & {"opaque", "redirect"}
    return None if merges else held


def _path_of(directory: Dir) -> bytes:
    """Where a directory is in its branch; empty for its root."""
    names = []
    while directory.parent is not None:
        names.append(directory.name)
        directory = directory.parent
    return b"".join(b"/" + name for name in reversed(names))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name]


def _open(pid: int, fd: int, stack: ExitStack) -> int:
    opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, opened)
    return opened
