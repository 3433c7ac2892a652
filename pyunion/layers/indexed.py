"""Names of hard-linked lower files whose changed copy only WORK/index makes theirs (overlayfs.rst, "Index").

Owns how such copies are found: in the index, where that is at hand, and else by the links that upper has for other
names. Which object such a name then shows is said by tree.Tree, to which they are given. Reads metadata only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from stat import S_ISCHR, S_ISDIR
from typing import NamedTuple

from pyunion.branch import index, objects
from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers.comparing import differences, same_data
from pyunion.layers.tree import Branches, Copies, Copy, Entry, Tree
from pyunion.union import marks, origin
from pyunion.union.merge import Kind


class Name(NamedTuple):
    """A name that has no link in upper."""

    path: bytes
    entry: Entry  # what it shows: the copy
    above: tuple[tuple[bytes, Entry], ...]  # the directories that it is in, from the root down

    @property
    def lower(self) -> tuple[int, int]:
        """The lower file, as Copies has it."""
        assert self.entry.copy_of is not None
        return self.entry.copy_of.st.st_dev, self.entry.copy_of.st.st_ino


def with_copies(branches: Branches, work: bytes | None, stack: ExitStack) -> Branches:
    """The same branches, whose union shows what a mount shows as far as the index of `work` says; without it, as far as
    upper does. Raises PyunionError and OSError."""
    assert branches.upper is not None
    origins = Origins(branches.lowers or [branches.upper], stack)
    opened = None if work is None else open_index(work, branches.upper, stack)
    found = _in_upper(branches.upper, origins) if opened is None else in_index(opened, branches.upper, origins)
    return branches._replace(copies=found)


def open_index(work: bytes, upper: Branch, stack: ExitStack) -> Index | None:
    """The index in a work directory, if it has one; `stack` closes it."""
    try:
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PyunionError(f"cannot open {os.fsdecode(work)}: {error.strerror}", ExitCode.WORK) from None
    try:
        if os.fstat(fd).st_dev != os.fstat(upper.root.fd()).st_dev:
            raise PyunionError(
                f"{os.fsdecode(work)} is no work directory of {os.fsdecode(upper.path)}: they are on two file systems",
                ExitCode.WORK,
            )
        opened = index.open_index_directory(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    finally:
        os.close(fd)
    path = os.path.join(work, b"index")
    branch = Branch(0, path, opened, DirCache(1), is_upper=True, xattr_prefix=upper.xattr_prefix)
    stack.callback(branch.root.close)
    return Index(branch)


def in_index(index: Index, upper: Branch, origins: Origins) -> Copies:
    """Those copies that have names without a link in upper."""
    found = {}
    for name in index.dir.names():
        st = index.dir.stat(name)
        if st is None or S_ISDIR(st.st_mode) or (S_ISCHR(st.st_mode) and st.st_rdev == 0):
            continue  # of a union that is exported by NFS
        value = objects.get_mark(index.dir.fd(), name, upper.prefix_to_read + marks.ORIGIN)
        lower = origins.stat(value) if value else None
        if lower is not None:
            missing = 1 - index.hidden_links(name, st, lower.st_nlink)
            if missing > 0:
                found[lower.st_dev, lower.st_ino] = Copy(index.dir, name, missing, lower)
    return found


def _in_upper(upper: Branch, origins: Origins) -> Copies:
    """The same, of those that have a link in upper too."""
    found = {}
    for here, name in _others(upper):
        copy = _linked(here, name, upper.prefix_to_read, origins)
        if copy is not None:
            found[copy.lower.st_dev, copy.lower.st_ino] = copy
    return found


def _others(branch: Branch) -> Iterator[tuple[Dir, bytes]]:
    """All entries of a branch but for directories and whiteouts, each with its directory."""
    todo = [branch.root]
    while todo:
        here = todo.pop()
        for name, kind in here.entries():
            if kind is Kind.DIRECTORY:
                todo.append(here.child(name))
            elif kind is Kind.OTHER:
                yield here, name
        branch.cache.trim()


def _linked(here: Dir, name: bytes, prefix: bytes, origins: Origins) -> Copy | None:
    """The names that have no link are those that the union has more than upper, where one is the entry of the index."""
    st = here.stat(name)
    if st is None or st.st_nlink < 2:
        return None
    count, copied_from = (objects.get_mark(here.fd(), name, prefix + mark) for mark in (marks.NLINK, marks.ORIGIN))
    lower = None if count is None or copied_from is None else origins.stat(copied_from)
    if count is None or lower is None:
        return None
    offset = origin.link_offset(count, st.st_nlink, lower.st_nlink)
    return None if offset is None or offset < 0 else Copy(here, name, offset + 1, lower)


def names(tree: Tree, copies: Copies, *, all_of_them: bool = False) -> Iterator[Name]:
    """The names that show these copies and have no link in upper: somewhere in the union, which may be mounted and
    change meanwhile. No more are looked for than there should be, unless `all_of_them` are wanted."""
    left = {key: copy.missing for key, copy in copies.items()}
    wanted = set(left)
    todo: list[tuple[bytes, Entry, tuple[tuple[bytes, Entry], ...]]] = [(b"", tree.root_entry(), ())]
    while todo and (wanted or all_of_them):
        at, directory, above = todo.pop()
        with suppress(FileNotFoundError):
            for name in sorted(tree.names(directory.parts)):
                entry = tree.child(directory.parts, name)
                if entry is None:
                    continue
                path = os.path.join(at, name)
                if entry.is_dir:
                    todo.append((path, entry, (*above, (path, entry))))
                elif entry.copy_of is not None:
                    found = Name(path, entry, above)
                    left[found.lower] -= 1
                    if not left[found.lower]:
                        wanted.discard(found.lower)
                    yield found
        tree.trim()


def changed_names(branches: Branches) -> Iterator[Name]:
    """Those names of changed files that have no link in upper."""
    return filter(is_changed, names(branches.union, branches.copies))


def any_of(branch: Branch, copies: Copies) -> bool:
    """Whether a branch has one of the lower files that these are copies of."""
    for here, name in _others(branch):
        st = here.stat(name)
        if st is not None and (st.st_dev, st.st_ino) in copies:
            return True
    return False


def is_changed(name: Name) -> bool:
    """Whether the copy is another file than the lower one by now: it is also made when a name is only removed."""
    lower = name.entry.copy_of
    assert lower is not None
    return bool(differences(name.entry, lower)) or not same_data(name.entry, lower)
