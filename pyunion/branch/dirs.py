"""Branches and their directories: every object is reached as (descriptor of its directory, name), no-follow.

Owns the directory descriptors of all branches and how many of them are open. Path length is no limit, and
nothing outside a branch can be reached, because a path is never walked as one string.
Knows nothing of merging: a Dir is a directory of one branch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from errno import ENAMETOOLONG, ENOENT
from stat import S_ISREG
from typing import Any, TypeVar

from pyunion.branch import objects
from pyunion.branch.remote import Remote
from pyunion.union import marks
from pyunion.union.merge import Kind, kind_of

_T = TypeVar("_T")

OPEN_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DirCache:
    """The open descriptors of all Dirs, at most about `limit` of them between two requests.

    Descriptors are closed in trim() only, which the file system calls between requests, and between the directories
    that are copied up: else a number stays good within one request. Nobody keeps a number over an await.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: deque[Dir] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, directory: Dir) -> None:
        self._open.append(directory)

    def trim(self) -> None:
        """Close the descriptors that were not used for longest (second chance), down to the limit."""
        queue = self._open
        for _ in range(2 * len(queue)):
            if len(queue) <= self.limit:
                return
            directory = queue.popleft()
            if directory.open_fd < 0 or directory.pinned:
                continue
            if directory.used:
                directory.used = False
                queue.append(directory)
            else:
                directory.close()

    def close_those_of(self, branch: Branch) -> None:
        """Close the descriptors in one branch, but for those that cannot be opened again."""
        queue = self._open
        for _ in range(len(queue)):  # threads may add some meanwhile
            directory = queue.popleft()
            if directory.branch is branch and not directory.pinned:
                directory.close()
            if directory.open_fd >= 0:
                queue.append(directory)


    def close_all(self) -> bool:
        """Close all that can be opened again, where descriptors are wanted for something else; whether any was."""
        closed = False
        for _ in range(len(self._open)):
            directory = self._open.popleft()
            if directory.pinned:
                self._open.append(directory)
            elif directory.open_fd >= 0:
                directory.close()
                closed = True
        return closed


class Branch:
    """One branch of the union: its place in the stack, its root, and what kind of marks to read in it."""

    __slots__ = (
        "aufs", "cache", "data_below", "index", "is_last", "is_upper", "path", "remote", "root", "user_marks",
        "xattr_prefix",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        path: bytes,
        root_fd: int,
        cache: DirCache,
        *,
        is_upper: bool = False,
        is_last: bool = False,
        data_below: bool = False,
        xattr_prefix: bytes | None = marks.TRUSTED,
        user_marks: bool = False,
        aufs: bool = False,
        remote: Remote | None = None,
        directory: type[Dir] | None = None,
    ) -> None:
        self.index = index
        self.path = path
        self.cache = cache
        self.is_upper = is_upper
        self.is_last = is_last  # the bottom branch: opaque marks and redirects in it say nothing
        self.data_below = data_below  # of it there are data-only branches: files in it may be metadata-only copies
        self.xattr_prefix = xattr_prefix
        self.user_marks = user_marks  # also honour user.overlay.opaque, as rootless tools write it
        self.aufs = aufs
        self.remote = remote  # it may not answer: its directories are RemoteDirs
        self.root = (directory or Dir)(self, None, b"")
        self.root.open_fd = root_fd
        self.root.pinned = True

    @property
    def prefix_to_read(self) -> bytes:
        """Of marks; where there can be none, one that finds none."""
        return self.xattr_prefix or marks.TRUSTED

    def close(self) -> None:
        """Let go of the branch: nothing in it is reached any more."""
        self.cache.close_those_of(self)
        self.root.close()

    def __repr__(self) -> str:
        return f"<branch {self.index} {os.fsdecode(self.path)}>"


class Dir:
    """A directory of one branch, whose descriptor is opened when it is needed and may be closed again."""

    __slots__ = ("branch", "impure", "name", "open_fd", "parent", "pinned", "used", "xwhiteouts")

    def __init__(self, branch: Branch, parent: Dir | None, name: bytes) -> None:
        self.branch = branch
        self.parent = parent
        self.name = name
        self.open_fd = -1
        self.used = False
        self.pinned = False  # cannot be opened again: the branch's root, or a directory that was removed
        self.xwhiteouts = False
        self.impure = False  # known to be marked so

    def fd(self) -> int:
        """An O_PATH descriptor of the directory, good until the end of this request."""
        self.used = True
        fd = self.open_fd
        return fd if fd >= 0 else self._open()

    def _open(self) -> int:
        names = []
        directory = self
        while directory.open_fd < 0:
            names.append(directory.name)
            assert directory.parent is not None  # the root is pinned
            directory = directory.parent
        base = fd = directory.open_fd
        for name in reversed(names):
            try:
                below = os.open(name, OPEN_DIR, dir_fd=fd)
            finally:
                if fd != base:
                    os.close(fd)
            fd = below
        self.open_fd = fd
        self.branch.cache.add(self)
        return fd

    def pin(self) -> None:
        """Keep the descriptor until close(), because the directory is about to lose its name."""
        self.fd()
        self.pinned = True

    def close(self) -> None:
        """Give the descriptor back; the next use opens it again."""
        if self.open_fd >= 0:
            os.close(self.open_fd)
            self.open_fd = -1
        self.pinned = False

    def move(self, parent: Dir, name: bytes) -> None:
        """Follow a rename that has happened on the branch."""
        self.parent = parent
        self.name = name

    def child(self, name: bytes) -> Dir:
        return Dir(self.branch, self, name)

    def ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """function(descriptor, *arguments), which changes nothing. All that is asked of a lower branch goes this way,
        or by one of the methods below."""
        return function(self.fd(), *arguments)

    def lstat(self, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)

    def status(self) -> os.stat_result:
        """fstat of the directory itself."""
        return os.fstat(self.fd())

    def stat(self, name: bytes) -> os.stat_result | None:
        """lstat of an entry, None where there is none (or where the branch cannot have such a name)."""
        try:
            return os.stat(name, dir_fd=self.fd(), follow_symlinks=False)
        except OSError as error:
            if absent(error):
                return None
            raise

    def kind(self, name: bytes, st: os.stat_result) -> Kind:
        """What the entry is as far as merging cares, whiteouts in xattr form included."""
        may_be_whiteout = self.xwhiteouts and st.st_size == 0 and S_ISREG(st.st_mode)
        if may_be_whiteout and self.ask(objects.has_xwhiteout, name, self.branch.xattr_prefix):
            return Kind.WHITEOUT
        return kind_of(st.st_mode, st.st_rdev)

    def is_whiteout(self, name: bytes, st: os.stat_result) -> bool:
        """Whether the entry hides what the layers below have under its name."""
        return self.kind(name, st) is Kind.WHITEOUT

    def aufs_hides(self, name: bytes) -> bool:
        """Whether an AUFS/OCI `.wh.` mark hides the name in the layers below (branches with that option)."""
        return self.branch.aufs and self.stat(marks.AUFS_PREFIX + name) is not None

    def names(self) -> list[bytes]:
        """All names in the directory, marks among them."""
        return self.ask(objects.names)

    def entries(self) -> Iterator[tuple[bytes, Kind]]:
        """The entries of the directory with their kinds, in the branch's own order."""
        return list_entries(self.fd(), self.branch.aufs, self.xwhiteouts, self.branch.xattr_prefix)


def absent(error: OSError) -> bool:
    """Whether a branch says by this that it does not have a name, or cannot have such a one."""
    return error.errno in (ENOENT, ENAMETOOLONG)


def list_entries(
    fd: int, aufs: bool, xwhiteouts: bool, xattr_prefix: bytes | None
) -> Iterator[tuple[bytes, Kind]]:
    """The entries of a directory by a descriptor of it; the rest is as of its branch and its Dir."""
    with os.scandir(b"/proc/self/fd/%d" % fd) as listing:
        for entry in listing:
            name = entry.name
            if aufs and name.startswith(marks.AUFS_PREFIX):
                if name != marks.AUFS_OPAQUE:
                    yield name[len(marks.AUFS_PREFIX) :], Kind.WHITEOUT
            elif entry.is_dir(follow_symlinks=False):
                yield name, Kind.DIRECTORY
            elif entry.is_file(follow_symlinks=False):
                hides = xwhiteouts and _is_xwhiteout(fd, name, xattr_prefix)
                yield name, Kind.WHITEOUT if hides else Kind.OTHER
            elif entry.is_symlink():
                yield name, Kind.OTHER
            else:
                yield name, Kind.WHITEOUT if _is_device_whiteout(fd, name) else Kind.OTHER


def _is_xwhiteout(fd: int, name: bytes, xattr_prefix: bytes | None) -> bool:
    st = _stat_listed(fd, name)
    return st is not None and st.st_size == 0 and objects.has_xwhiteout(fd, name, xattr_prefix)


def _is_device_whiteout(fd: int, name: bytes) -> bool:
    st = _stat_listed(fd, name)
    return st is not None and kind_of(st.st_mode, st.st_rdev) is Kind.WHITEOUT


def _stat_listed(fd: int, name: bytes) -> os.stat_result | None:
    """lstat of what was there a moment ago."""
    try:
        return objects.stat(fd, name)
    except OSError as error:
        if absent(error):
            return None
        raise
