"""copy_up: bringing a node's object into the writable branch before it is changed.

Owns when copies are made, the lock that makes it once, and the step that puts a copy in place: that step is
synchronous, so that no other request sees half of it. What a copy consists of is pyunion/branch/copyup.py.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from errno import ENOENT, EROFS
from stat import S_ISREG

import trio

from pyunion.branch import copyup, objects
from pyunion.branch import marks as branch_marks
from pyunion.branch.dirs import Branch, Dir
from pyunion.branch.work import Work
from pyunion.fs.locks import KeyedLock
from pyunion.fs.nodes import Directory, File, Table


class Copier:
    """Brings nodes into upper. Without a work directory every change is EROFS."""

    def __init__(self, table: Table, upper: Branch | None, work: Work | None, metacopy: bool) -> None:
        self.table = table
        self.upper = upper
        self._work = work
        self.metacopy = metacopy
        self.locks = KeyedLock()

    @property
    def work(self) -> Work:
        """The work directory; raises EROFS in a read-only union."""
        if self._work is None:
            raise OSError(EROFS, os.strerror(EROFS))
        return self._work

    # -- directories: small, so at once -----------------------------------------------------------------------

    def directory(self, node: Directory) -> Dir:
        """The directory's part in upper, made with all its missing parents if need be."""
        top = node.layers[0]
        if top.branch.writable:
            return top
        work = self.work
        missing: list[Directory] = []
        above: Directory | None = node
        while above is not None and not above.in_upper:
            if above.dead:
                raise OSError(ENOENT, os.strerror(ENOENT), above.name)
            missing.append(above)
            above = above.parent
        for directory in reversed(missing):
            self._copy_directory(work, directory)
        return node.layers[0]

    def _copy_directory(self, work: Work, node: Directory) -> None:
        assert node.parent is not None
        into = node.parent.layers[0]
        lower = node.layers[0]
        name = work.stage(lower.fd(), b".", os.fstat(lower.fd()))
        self._put(work, name, into, node.name)
        node.layers = (into.child(node.name), *node.layers)

    def _put(self, work: Work, staged: bytes, into: Dir, name: bytes) -> None:
        """Rename a copy into place. It was there already as far as users can see: the directory's times stay."""
        fd = into.fd()
        before = os.fstat(fd)
        try:
            work.put(staged, into, name)
        except OSError:
            work.discard(staged)
            raise
        objects.utime(fd, b".", before.st_atime_ns, before.st_mtime_ns)

    # -- everything else --------------------------------------------------------------------------------------

    async def data(self, file: File, size: int | None = None) -> None:
        """Bring the whole file into upper; with `size`, only its first bytes, as the rest is about to go."""
        if file.in_upper and file.data is None:
            return
        work = self.work
        async with self.locks.hold(file.ino):
            if not file.in_upper:
                await self._copy(work, file, size)
            elif file.data is not None:
                await self._complete(work, file, size)

    async def metadata(self, file: File) -> None:
        """Bring into upper what a change of owner, mode, times or xattrs needs."""
        if file.in_upper:
            return
        if not self.metacopy or self.work.xattr_prefix is None:
            await self.data(file)
            return
        async with self.locks.hold(file.ino):
            if not file.in_upper:
                await self._copy(self.work, file, None, metadata_only=True)

    async def _copy(self, work: Work, file: File, size: int | None, metadata_only: bool = False) -> None:
        fd, name = file.address()
        st = objects.stat(fd, name)
        data = None
        if not S_ISREG(st.st_mode):
            staged = work.stage(fd, name, st)
        else:
            staged = work.temp_name()
            alone = st.st_nlink == 1 and not file.aliases and not file.dead
            with ExitStack() as stack:
                source = _open_source(file, st, stack)
                if metadata_only and alone and st.st_size:
                    assert work.xattr_prefix is not None
                    copyup.stage_metadata(work.fd, staged, source, work.xattr_prefix)
                    data = file.data or (file.dir, file.real)
                else:
                    await self._stage_data(work, staged, source, size)
        self._publish(work, file, staged, st.st_nlink > 1)
        file.data = data

    @staticmethod
    async def _stage_data(work: Work, staged: bytes, source: copyup.Source, size: int | None) -> None:
        wanted = source.st.st_size if size is None else min(size, source.st.st_size)
        arguments = (work.fd, staged, source, wanted, work.xattr_prefix, work.sync)
        if wanted:
            await trio.to_thread.run_sync(copyup.stage_file, *arguments)
        else:
            copyup.stage_file(*arguments)

    def _publish(self, work: Work, file: File, staged: bytes, linked: bool) -> None:
        """Put a finished copy where the file is now: it may have been moved or unlinked while it was made."""
        if file.dead:
            file.pin = os.open(staged, objects.PIN, dir_fd=work.fd)
            os.unlink(staged, dir_fd=work.fd)
            assert self.upper is not None
            file.dir, file.real = self.upper.root, b""
        else:
            self._put_names(work, file, staged)
        file.removed = 0
        self.table.forget_key(file)
        if linked or file.aliases:
            self.table.add_link(file, file.stat())
        self._swap_descriptors(file)

    def _put_names(self, work: Work, file: File, staged: bytes) -> None:
        """All names of a lower file that are known become links of the copy."""
        assert file.parent is not None
        try:
            into = self.directory(file.parent)
        except OSError:
            work.discard(staged)
            raise
        self._put(work, staged, into, file.name)
        file.dir, file.real = into, file.name
        for parent, name in file.aliases or ():
            os.link(
                file.name, name,
                src_dir_fd=into.fd(), dst_dir_fd=self.directory(parent).fd(), follow_symlinks=False,
            )  # fmt: skip

    def _swap_descriptors(self, file: File) -> None:
        """Descriptors that were opened on the lower file read the copy from now on: dup2(2) keeps their numbers,
        which the kernel holds as file handles, and lets a read that is under way end on the old file."""
        for fd in file.fds or ():
            fresh = objects.open_file(*file.address(), os.O_RDONLY)
            os.dup2(fresh, fd, inheritable=False)
            os.close(fresh)

    async def _complete(self, work: Work, file: File, size: int | None) -> None:
        """Give a metadata-only copy its data. Until the mark goes, the file below counts."""
        assert file.data is not None
        directory, name = file.data
        source = objects.open_file(directory.fd(), name, os.O_RDONLY)
        try:
            target = objects.open_file(*file.address(), os.O_WRONLY)
            try:
                st = os.fstat(target)
                wanted = st.st_size if size is None else min(size, st.st_size)
                await trio.to_thread.run_sync(copyup.copy_data, source, target, wanted)
                os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
                if work.sync:
                    await trio.to_thread.run_sync(os.fsync, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        with suppress(FileNotFoundError):
            branch_marks.clear_metacopy(*file.address(), file.dir.branch)
        file.data = None
        self._swap_descriptors(file)


def _open_source(file: File, st: os.stat_result, stack: ExitStack) -> copyup.Source:
    """Open a lower file for copying; `stack` closes it."""
    fd = objects.open_file(*file.address(), os.O_RDONLY)
    stack.callback(os.close, fd)
    if file.data is None:
        return copyup.Source(fd, fd, st)
    directory, name = file.data
    data_fd = objects.open_file(directory.fd(), name, os.O_RDONLY)
    stack.callback(os.close, data_fd)
    return copyup.Source(fd, data_fd, st)
