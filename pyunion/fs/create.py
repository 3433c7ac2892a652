"""New objects: files, directories, devices, fifos, sockets, symlinks and hard links.

Owns how a name that does not exist in the union becomes one that does, in one step, with the right owner from the
first moment; where upper has a whiteout, the new object takes its place. Removing is remove.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOENT, EPERM
from stat import S_ISCHR

from pyunion.branch.dirs import Dir
from pyunion.branch.marks import set_opaque
from pyunion.branch.work import Work
from pyunion.fs.callers import Caller, Identity
from pyunion.fs.copier import Copier
from pyunion.fs.lookup import Lookup
from pyunion.fs.nodes import Directory, File, Table
from pyunion.fs.protection import require_changeable, require_mutable

Make = Callable[[int, bytes], None]  # makes the object under a name in a directory given by descriptor
_CREATE = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Create:
    """Makes new objects in upper."""

    def __init__(self, table: Table, lookup: Lookup, copier: Copier, identity: Identity) -> None:
        self._table = table
        self._lookup = lookup
        self._copier = copier
        self._identity = identity

    def file(self, parent: Directory, name: bytes, mode: int, caller: Caller) -> tuple[File, os.stat_result, int]:
        """A new regular file, open for reading and writing: (node, attributes, descriptor)."""
        opened: list[int] = []

        def make(dirfd: int, at: bytes) -> None:
            opened.append(os.open(at, _CREATE, mode & 0o7777, dir_fd=dirfd))

        try:
            node, st = self._object(parent, name, caller, make)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        node.told_mtime_ns = st.st_mtime_ns
        node.incapable = True
        return node, st, opened[0]

    def nameless(self, parent: Directory, mode: int, caller: Caller) -> tuple[File, os.stat_result, int]:
        """A regular file without a name (O_TMPFILE), which a link may give it one."""
        if parent.dead:
            raise OSError(ENOENT, os.strerror(ENOENT))
        require_mutable(parent)
        self._identity.ids(caller)
        into = self._copier.directory(parent)
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        fd = self._identity.run_as(caller, lambda: os.open(b".", flags, mode & 0o7777, dir_fd=into.fd()))
        try:
            st = os.fstat(fd)
            pin = os.open(b"/proc/self/fd/%d" % fd, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            raise
        node = File(parent, b"", into, b"")
        node.dead = True
        node.pin = pin
        node.told_mtime_ns = st.st_mtime_ns
        self._table.add(node, st.st_dev, st.st_ino)
        return node, st, fd

    def special(
        self, parent: Directory, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> tuple[File, os.stat_result]:
        """A regular file, device, fifo or socket. A character device 0:0 would be a whiteout: EPERM."""
        if S_ISCHR(mode) and rdev == 0:
            raise OSError(EPERM, os.strerror(EPERM), name)
        return self._object(parent, name, caller, lambda dirfd, at: os.mknod(at, mode, rdev, dir_fd=dirfd))

    def symlink(
        self, parent: Directory, name: bytes, target: bytes, caller: Caller
    ) -> tuple[File, os.stat_result]:
        return self._object(parent, name, caller, lambda dirfd, at: os.symlink(target, at, dir_fd=dirfd))

    def directory(
        self, parent: Directory, name: bytes, mode: int, caller: Caller
    ) -> tuple[Directory, os.stat_result]:
        """A new directory. Where anything could show through it from below it is opaque."""
        into, replaced = self._make(
            parent, name, caller, lambda dirfd, at: os.mkdir(at, mode & 0o7777, dir_fd=dirfd), is_dir=True
        )
        with self._taken_back(into, name, replaced, is_dir=True):
            if parent.lowers and not replaced and into.branch.xattr_prefix is not None:
                # nothing is below now; the mark says so for good, and spares look-ups in the layers below
                set_opaque(into.fd(), name, into.branch)
            st = os.stat(name, dir_fd=into.fd(), follow_symlinks=False)
        node = Directory(parent, name, (into.child(name),))
        self._table.add(node, st.st_dev, st.st_ino)
        return node, st

    async def link(self, file: File, parent: Directory, name: bytes) -> os.stat_result:
        """A further name for a file, which is brought into upper first."""
        require_changeable(file)
        require_mutable(parent)
        await self._copier.data(file)
        self._copier.links.before_change(file)
        self._copier.comes_into(file, self._copier.directory(parent))
        source_fd, source = file.address()

        def make(dirfd: int, at: bytes) -> None:
            if source:
                os.link(source, at, src_dir_fd=source_fd, dst_dir_fd=dirfd, follow_symlinks=False)
            else:
                os.link(b"/proc/self/fd/%d" % source_fd, at, dst_dir_fd=dirfd, follow_symlinks=True)

        into, replaced = self._make(parent, name, None, make)
        with self._taken_back(into, name, replaced):
            st = os.stat(name, dir_fd=into.fd(), follow_symlinks=False)
        if file.dead:
            file.let_go()
            file.at(into, name)
        self._table.add_name(file, parent, name)
        self._table.forget_key(file)
        self._table.add_link(file, st)
        return st

    def _object(self, parent: Directory, name: bytes, caller: Caller, make: Make) -> tuple[File, os.stat_result]:
        into, replaced = self._make(parent, name, caller, make)
        with self._taken_back(into, name, replaced):
            st = os.stat(name, dir_fd=into.fd(), follow_symlinks=False)
        node = File(parent, name, into, name)
        self._table.add(node, st.st_dev, st.st_ino)
        return node, st

    @contextmanager
    def _taken_back(self, into: Dir, name: bytes, replaced: bool, is_dir: bool = False) -> Iterator[None]:
        """What fails once a new name is there takes it away again, as the caller will hear that it was not made."""
        try:
            yield
        except OSError:
            with suppress(OSError):
                if replaced:
                    self._copier.work.whiteout_over(into, name, is_dir)
                else:
                    (os.rmdir if is_dir else os.unlink)(name, dir_fd=into.fd())
            raise

    def _make(
        self, parent: Directory, name: bytes, caller: Caller | None, make: Make, is_dir: bool = False
    ) -> tuple[Dir, bool]:
        """Make an object under a name: (directory in upper, whether it took the place of a whiteout)."""
        if parent.dead:
            raise OSError(ENOENT, os.strerror(ENOENT), name)
        require_mutable(parent)
        if caller is not None:
            self._identity.ids(caller)  # before anything is copied
        into = self._copier.directory(parent)
        try:
            self._run(caller, make, into.fd(), name)
            return into, False
        except FileExistsError:
            st = into.stat(name)
            if st is None or not into.is_whiteout(name, st):
                raise
        self._make_over_whiteout(self._copier.work, into, name, caller, make, is_dir)
        return into, True

    def _make_over_whiteout(
        self, work: Work, into: Dir, name: bytes, caller: Caller | None, make: Make, is_dir: bool
    ) -> None:
        fd, nursery = work.nursery(into)
        staged = work.temp_name()
        try:
            self._run(caller, make, fd, staged)
            try:
                if is_dir:
                    set_opaque(fd, staged, into.branch)
                work.replace_whiteout(fd, staged, into, name, is_dir)
            except OSError:
                (os.rmdir if is_dir else os.unlink)(staged, dir_fd=fd)
                raise
        finally:
            work.close_nursery(fd, nursery)

    def _run(self, caller: Caller | None, make: Make, fd: int, name: bytes) -> None:
        if caller is None:
            make(fd, name)
        else:
            self._identity.run_as(caller, lambda: make(fd, name))


def exists(name: bytes) -> OSError:
    return OSError(EEXIST, os.strerror(EEXIST), name)
