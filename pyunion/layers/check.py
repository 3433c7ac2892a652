"""What is wrong with an upper branch and its work directory, and what can be put right without losing anything.

Owns what counts as a fault, the sentence that explains it, and its repair. A repair removes nothing but marks that say
nothing; what might be somebody's data is moved to WORK/aside, and what cannot be put right is left alone. Whether the
union is mounted is the caller's to ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from stat import S_IFCHR, S_ISCHR, S_ISDIR, S_ISREG
from typing import NamedTuple

from pyunion.branch import marks as branch_marks
from pyunion.branch import objects
from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.layers.aside import Aside
from pyunion.layers.tree import Branches, Entry, Tree
from pyunion.union import marks
from pyunion.union.merge import Kind
from pyunion.union.origin import index_name

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_VOLATILE = b"work/incompat/volatile"


class Finding(NamedTuple):
    """One fault."""

    path: bytes  # of the object in its branch
    sentence: str  # what it is, what follows from it, and what a user can do
    repair: Callable[[], str] | None = None  # puts it right and says how; None: only the user can


def findings(branches: Branches, work: bytes, stack: ExitStack) -> Iterator[Finding]:
    """All faults of upper and work, one by one. The branches are locked by the caller. Raises OSError, PyunionError.

    Repairs may be made once all have been found; those of entries of upper need a writable view of it.
    """
    assert branches.upper is not None
    work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, work_fd)
    aside = Aside(work_fd, work)
    yield from _work_files(work_fd, work, aside)
    yield from _index_entries(branches, work_fd, work, aside, stack)
    yield from _Upper(branches, branches.upper, aside).findings()


# -- the work directory -------------------------------------------------------------------------------------------


def _work_files(work_fd: int, work: bytes, aside: Aside) -> Iterator[Finding]:
    """WORK/work belongs to a running mount, and holds nothing after it but the whiteout that others are links of."""
    if _stat(work_fd, _VOLATILE) is not None:
        yield Finding(
            os.path.join(work, _VOLATILE),
            "the last mount was a volatile one, after which upper may have lost data in a crash; remove this when you "
            "are sure that it is whole",
        )
    try:
        fd = os.open(b"work", _DIR, dir_fd=work_fd)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for text in sorted(os.listdir(fd)):
            name = os.fsencode(text)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if name == b"incompat" or (S_ISCHR(st.st_mode) and st.st_rdev == 0):
                continue
            yield Finding(
                os.path.join(work, b"work", name),
                "this was being prepared when a mount ended without having unmounted; it is part of no union, and the "
                "next mount would delete it",
                partial(_move_work_file, work_fd, name, aside),
            )
    finally:
        os.close(fd)


def _move_work_file(work_fd: int, name: bytes, aside: Aside) -> str:
    fd = os.open(b"work", _DIR, dir_fd=work_fd)
    try:
        return aside.take(fd, name)
    finally:
        os.close(fd)


def _index_entries(
    branches: Branches, work_fd: int, work: bytes, aside: Aside, stack: ExitStack
) -> Iterator[Finding]:
    """WORK/index: each entry is the copy of the lower file whose handle is its name (overlayfs.rst, "Index")."""
    try:
        fd = os.open(b"index", _DIR, dir_fd=work_fd)
    except (FileNotFoundError, NotADirectoryError):
        return
    stack.callback(os.close, fd)
    origins = Origins(branches.lowers, stack)
    assert branches.upper is not None
    prefix = branches.upper.prefix_to_read
    index = Index(Branch(0, b"index", fd, DirCache(1), is_upper=True, xattr_prefix=prefix))
    for text in sorted(os.listdir(fd)):
        name = os.fsencode(text)
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if S_ISDIR(st.st_mode) or (S_ISCHR(st.st_mode) and st.st_rdev == 0):
            continue  # of a union that is exported by NFS
        fault = _index_fault(index, name, st, prefix, origins)
        if fault is not None:
            yield Finding(os.path.join(work, b"index", name), fault, partial(aside.take, fd, name))


def _index_fault(index: Index, name: bytes, st: os.stat_result, prefix: bytes, origins: Origins) -> str | None:
    origin = objects.get_mark(index.dir.fd(), name, prefix + marks.ORIGIN)
    if not origin:
        return "this entry of the index has no origin, so that no lower file can be shown by it"
    if index_name(origin) != name:
        return "this entry of the index is the copy of another lower file than its name says"
    if not origins.usable:
        return None  # cannot be told
    lower = origins.stat(origin)
    if lower is None:
        return "the lower file that this entry of the index is a copy of is in none of the lower branches any more"
    if st.st_nlink - index.hidden_links(name, st, lower.st_nlink) <= 0:
        return "no name of the union leads to this entry of the index any more"
    return None


# -- the upper branch ---------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A directory of upper, as the union has it."""

    path: bytes
    entry: Entry

    @property
    def dir(self) -> Dir:
        return self.entry.parts[0]


class _Upper:
    """The walk through the directories of upper."""

    def __init__(self, branches: Branches, upper: Branch, aside: Aside) -> None:
        self._tree: Tree = branches.union
        self._upper = upper
        self._knows_lowers = bool(branches.lowers)
        self._aside = aside
        self._prefix = upper.prefix_to_read
        self._led_nowhere = False
        self._other_prefix = marks.USER if self._prefix == marks.TRUSTED else marks.TRUSTED

    def findings(self) -> Iterator[Finding]:
        """Whiteouts come last: if something leads nowhere, the lower branches may be others than it was made with, and
        those whiteouts may hide something after all."""
        whiteouts: list[Finding] = []
        todo = [_Place(b"", self._tree.root_entry())]
        while todo:
            place = todo.pop()
            for name, kind in sorted(place.dir.entries()):
                path = os.path.join(place.path, name)
                if kind is Kind.WHITEOUT:
                    whiteouts += self._whiteout(place, name, path)
                    continue
                entry = self._tree.child(place.entry.parts, name)
                if entry is None:
                    continue
                yield from self._marks(place, entry, name, path)
                if name.startswith(marks.AUFS_PREFIX):
                    yield from self._aufs(place, entry, name, path)
                if entry.is_dir:
                    todo.append(_Place(path, entry))
            self._tree.trim()
        for finding in whiteouts:
            yield finding._replace(repair=None) if self._led_nowhere else finding

    def _finding(self, path: bytes, sentence: str, repair: Callable[[], str] | None = None) -> Finding:
        return Finding(os.path.join(self._upper.path, path), sentence, repair)

    def _hides(self, place: _Place, name: bytes) -> bool:
        """Whether there is something below for an entry of upper to hide."""
        return self._tree.child(place.entry.parts[1:], name) is not None

    def _whiteout(self, place: _Place, name: bytes, path: bytes) -> Iterator[Finding]:
        if self._knows_lowers and not self._hides(place, name):
            yield self._finding(
                path,
                "this whiteout hides nothing, as no lower branch has anything there",
                partial(_remove_whiteout, place.dir, name),
            )

    def _marks(self, place: _Place, entry: Entry, name: bytes, path: bytes) -> Iterator[Finding]:
        fd = place.dir.fd()
        keys = objects.list_xattr(fd, name)
        for key in sorted(keys):
            if marks.is_mark(key, self._other_prefix):
                yield self._finding(
                    path,
                    f"{os.fsdecode(key)} says nothing to a mount that reads {os.fsdecode(self._prefix)}*; if it was "
                    f"left by another kind of mount, mount {self._way_to_read()}",
                )
        yield from self._protection(place, name, path)
        value = objects.get_mark(fd, name, self._prefix + marks.REDIRECT)
        if value is not None and not marks.valid_redirect(value):
            yield self._finding(
                path,
                f"its redirect {os.fsdecode(value)!r} is no path; the kernel shows an error there, and pyunion "
                "ignores it",
                partial(_remove_mark, place.dir, name, self._prefix + marks.REDIRECT),
            )
        elif entry.metacopy and entry.data is None:
            self._led_nowhere = True
            yield self._finding(
                path,
                "this file has its metadata only, and its data are in none of the lower branches; reading it is an "
                "error. Mount it with the lower branches that it was made with",
            )
        elif self._knows_lowers and value is not None and entry.is_dir and len(entry.parts) == 1 and not entry.opaque:
            self._led_nowhere = True
            yield self._finding(
                path,
                f"its redirect to {os.fsdecode(value)!r} leads to no directory of the lower branches, so that what was "
                "there is missing. Mount it with the lower branches that it was made with",
            )

    def _protection(self, place: _Place, name: bytes, path: bytes) -> Iterator[Finding]:
        key = self._prefix + marks.PROTATTR
        value = objects.get_mark(place.dir.fd(), name, key)
        if value is not None and not marks.protection(value):
            yield self._finding(
                path,
                f"{os.fsdecode(key)} {os.fsdecode(value)!r} is none of what chattr can forbid, so that nothing is "
                "forbidden here",
                partial(_remove_mark, place.dir, name, key),
            )

    def _way_to_read(self) -> str:
        return "with -o userxattr" if self._prefix == marks.TRUSTED else "as root without userxattr"

    def _aufs(self, place: _Place, entry: Entry, name: bytes, path: bytes) -> Iterator[Finding]:
        """A mark of AUFS and OCI layers, which a union shows as an ordinary file."""
        if not S_ISREG(entry.st.st_mode) or entry.st.st_size:
            yield self._finding(
                path,
                "its name is that of a whiteout in an OCI layer, but it is no empty file; rename it if it is yours",
            )
        elif name == marks.AUFS_OPAQUE:
            yield self._finding(
                path,
                "this mark of an OCI layer does not hide what is below its directory here, and shows as a file",
                partial(self._convert_opaque, place, name),
            )
        else:
            yield self._finding(
                path,
                "this whiteout of an OCI layer does not hide anything here, and shows as a file",
                partial(self._convert_whiteout, place, name),
            )

    def _convert_opaque(self, place: _Place, name: bytes) -> str:
        with objects.keeping_times(place.dir.fd()):
            where = self._aside.take(place.dir.fd(), name)
        if not place.path:
            return f"{where}; a root cannot be opaque: leave the lower branches out of the mount instead"
        branch_marks.set_opaque(place.dir.fd(), b".", self._upper)
        return f"{where}, and made its directory opaque"

    def _convert_whiteout(self, place: _Place, name: bytes) -> str:
        directory, hidden = place.dir, name[len(marks.AUFS_PREFIX) :]
        with objects.keeping_times(directory.fd()):
            where = self._aside.take(directory.fd(), name)
            if not hidden or directory.stat(hidden) is not None or not self._hides(place, hidden):
                return where
            os.mknod(hidden, S_IFCHR, 0, dir_fd=directory.fd())
        return f"{where}, and made a whiteout of {os.fsdecode(hidden)}"


# -- repairs ------------------------------------------------------------------------------------------------------


def _remove_whiteout(directory: Dir, name: bytes) -> str:
    st = directory.stat(name)
    if st is None or not directory.is_whiteout(name, st):
        return "it was gone already"
    with objects.keeping_times(directory.fd()):
        os.unlink(name, dir_fd=directory.fd())
    return "removed"


def _remove_mark(directory: Dir, name: bytes, key: bytes) -> str:
    objects.remove_xattr(directory.fd(), name, key)
    return f"removed {os.fsdecode(key)}"


def _stat(fd: int, path: bytes) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
