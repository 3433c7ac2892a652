"""Open files: a file handle of the kernel's is the number of a descriptor on a branch.

Owns the descriptors and what is known about each. A copy_up exchanges the file behind a descriptor and keeps its
number, so reads need no table. Knows no names.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from errno import EAGAIN, EINVAL, EIO, EOPNOTSUPP, EPERM
from stat import S_IMODE, S_ISGID, S_ISUID, S_IXGRP

from pyunion.branch import objects, syscalls
from pyunion.branch.remote import Remote, close
from pyunion.fs.callers import CAP_FSETID, Caller, is_capable, is_member
from pyunion.fs.copier import Copier
from pyunion.fs.nodes import Directory, File
from pyunion.fs.protection import require_allocation, require_copying_into, require_open
from pyunion.fs.unopened import FIRST, Unopened
from pyunion.fs.waiting import OnDisk, in_thread, open_by
from pyunion.union.ids import Mapping
from pyunion.union.marks import APPEND

log = logging.getLogger(__name__)

_WRITES = os.O_WRONLY | os.O_RDWR
_KEEP = os.O_ACCMODE | os.O_TRUNC | os.O_NOATIME
_RWF_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
BUFFER = 1 << 20


class OpenFile:
    """What is known about a descriptor."""

    __slots__ = ("bypasses_cache", "clears_setid", "file", "in_group", "maps", "writes")

    def __init__(self, file: File, flags: int, *, clears_setid: bool = False, in_group: bool = True) -> None:
        self.file = file
        self.in_group = in_group  # who has opened it is in its group, if that says anything: see without_setid()
        self.writes = bool(flags & _WRITES)
        self.maps = flags & os.O_ACCMODE == os.O_RDWR  # mmap(2) with MAP_SHARED and PROT_WRITE takes no less
        self.clears_setid = clears_setid
        self.bypasses_cache = bool(flags & os.O_DIRECT)  # what is written does not go by the kernel's page cache


class OpenFiles:
    """All open files of the mount."""

    def __init__(
        self,
        copier: Copier,
        gids: Mapping,
        *,
        writeback: bool,
        sync: bool,
        noatime: bool = False,
        pass_lower: bool = False,
        opens_later: bool = False,
    ) -> None:
        self._copier = copier
        self._noatime = os.O_NOATIME if noatime and os.geteuid() == 0 else 0
        self._gids = gids
        self.writeback = writeback  # the kernel collects writes, and knows better than the branch until it sends them
        self._pass_lower = pass_lower
        self._opens_later = opens_later
        self._sync = sync
        self._on_disk = OnDisk()
        self._from_disk = OnDisk()
        self.kernel_writes = False  # what it can it reads and writes by itself
        self._lost = 0  # the errno of a write to the disk that failed, where nothing is synced
        self._open: dict[int, OpenFile] = {}
        self.unopened = Unopened(self._add_reader, self.release, self._noatime)
        self._direct: set[int] = set()
        self._remote: set[int] = set()  # opened on a branch that may not answer
        self._buffer = memoryview(bytearray(BUFFER))
        self._nowait = _RWF_NOWAIT
        self.kernel_tells_setid = False  # it says with each write whether setuid and setgid must go
        self.changed_modes: list[int] = []  # numbers of nodes whose mode changed by a write: the kernel must hear

    def __len__(self) -> int:
        return len(self._open) + len(self.unopened)

    def node_of(self, fd: int) -> int:
        """The number of the file behind a handle; 0 if it is none."""
        if fd >= FIRST:
            return self.unopened.file(fd).id
        opened = self._open.get(fd)
        return 0 if opened is None else opened.file.id

    def open_without_descriptor(self, file: File, flags: int) -> int:
        """A handle of a regular file, if it can do without a descriptor (unopened.py); else 0. What the kernel reads by
        itself it reads by a descriptor."""
        if not self._opens_later or file.in_upper or (self.kernel_writes and self.may_pass_through(file)):
            return 0
        return self.unopened.begin(file, flags)

    async def open(self, file: File, flags: int, caller: Caller) -> int:
        """Open a regular file; one that will be written is brought into upper first. Returns the handle."""
        require_open(file, flags)
        flags = flags & ~os.O_NOATIME | self._noatime
        if self.writeback and flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR  # the kernel reads what it fills pages with
        opens = self._open_truncated if flags & os.O_TRUNC else self._open_whole
        fd, opened = await opens(file, flags, caller)
        self._add(fd, opened)
        if self.kernel_writes and self._may_sync_unseen(file, flags):
            try:
                await self.fsync(fd, datasync=False)
            except OSError:
                self.release(fd)
                raise
        return fd

    async def _open_whole(self, file: File, flags: int, caller: Caller) -> tuple[int, OpenFile]:
        opened = OpenFile(file, flags)
        if flags & _WRITES:
            await self._copier.data(file)
            opened = self._for_changes(file, file.stat(), flags, caller)
        fd = await self._open_below(file, flags)
        return (fd if fd >= 0 else self._open_object(file, flags)), opened

    async def _open_truncated(self, file: File, flags: int, caller: Caller) -> tuple[int, OpenFile]:
        """An open(2) that fails truncates nothing: the cut is the last step, or is made with the copy."""
        ready: list[tuple[int, OpenFile]] = []
        with ExitStack() as stack:

            def first(directory_fd: int, name: bytes) -> None:
                where = directory_fd, name
                fd = objects.open_file(*where, flags & _KEEP & ~os.O_TRUNC)
                stack.callback(os.close, fd)
                ready.append((fd, self._for_changes(file, objects.stat(*where), flags, caller)))
                self._clear_setid(file, where, caller)

            if not await self._copier.data(file, 0, first):
                if not ready:
                    first(*file.address())
                _cut(ready[0][0], flags)
            stack.pop_all()
            return ready[0]

    def _for_changes(self, file: File, st: os.stat_result, flags: int, caller: Caller) -> OpenFile:
        if self.writeback:
            self._note_mtime(file, st, truncates=bool(flags & os.O_TRUNC))
        return self._writer(file, st, flags, caller)

    def _may_sync_unseen(self, file: File, flags: int) -> bool:
        """Whether the kernel may sync data of a copy by itself, for a mapping or O_DSYNC, while it is not on disk yet
        that there is a copy. With O_TRUNC its size changes before, and brings that along."""
        if not (self._sync and file.copied and not file.settled and flags & _WRITES) or flags & os.O_TRUNC:
            return False
        return bool(flags & os.O_DSYNC) or flags & os.O_ACCMODE == os.O_RDWR

    async def _open_below(self, file: File, flags: int) -> int:
        """A descriptor of data that are in another place than the object, or on a branch that may not answer; -1 if
        they are not. They may come to upper while it is opened."""
        while file.pin < 0 and (file.data is not None or file.remote is not None):
            source, remote = file.source, file.remote
            fd = await open_by(source[0], objects.open_file, source[1], flags & _KEEP)
            if file.data_below() is not None:
                if remote is not None:
                    self._remote.add(fd)
                return fd
            close(fd, remote)
        return -1

    def _remote_of(self, fd: int) -> Remote | None:
        """The branch that may not answer, if the file of this handle is there still."""
        return self._open[fd].file.remote if fd in self._remote else None

    def _writer(self, file: File, st: os.stat_result, flags: int, caller: Caller) -> OpenFile:
        """The writes themselves do not say whose they are. Only a setgid file is worth the question of the group."""
        ask = caller.uid != 0 and not self.kernel_tells_setid
        return OpenFile(
            file,
            flags,
            clears_setid=ask and not is_capable(caller, CAP_FSETID),
            in_group=not st.st_mode & S_ISGID or is_member(caller, self._gids.shown(st.st_gid)),
        )

    def _open_object(self, file: File, flags: int) -> int:
        """Appending is the kernel's business, which knows the end of the file; but an append-only file (chattr(1)) lets
        itself be opened for nothing else. Writes then come as they are made, and go where the branch appends them."""
        if not (file.protection & APPEND and flags & _WRITES):
            try:
                return objects.open_file(*file.address(), flags & _KEEP)
            except PermissionError:
                if not flags & os.O_APPEND:
                    raise
        fd = objects.open_file(*file.address(), flags & _KEEP | os.O_APPEND)
        self._direct.add(fd)
        return fd

    def is_direct(self, fd: int) -> bool:
        """Whether the kernel must not collect writes to this handle."""
        return fd in self._direct

    def may_pass_through(self, file: File, st: os.stat_result | None = None) -> bool:
        """Whether the kernel may read and write the file by itself, as long as it has it open: its data must not move.
        What is in a lower branch does, at the first write: who has it open by then would go on to read the lower one,
        which the user may allow. A set-id bit goes by a write, of which we hear only so; and what chattr(1) has said
        lets nobody write but us, who know it."""
        if self._copier.is_read_only or (self._pass_lower and file.data_below() is not None):
            return True
        if not file.in_upper or file.data is not None or file.protection:
            return False
        return not (st or file.stat()).st_mode & (S_ISUID | S_ISGID)

    def add_new(self, fd: int, file: File, st: os.stat_result, flags: int, caller: Caller) -> None:
        """Take over the descriptor of a file that was just made. Its maker need not be in its group: see _writer()."""
        self._add(fd, self._writer(file, st, flags, caller))

    def _add(self, fd: int, opened: OpenFile) -> None:
        self._open[fd] = opened
        file = opened.file
        if file.swapped:
            file.swapped.discard(fd)  # the number had another file before
        if file.fds is None:
            file.fds = [fd]
        else:
            file.fds.append(fd)

    def _add_reader(self, fd: int, file: File) -> None:
        self._add(fd, OpenFile(file, os.O_RDONLY))

    def descriptor(self, handle: int) -> int:
        """The descriptor of a handle, which may have none yet. Raises OSError."""
        return handle if handle < FIRST else self.unopened.descriptor(handle)

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        """Data from the page cache at once, into a buffer that is good until the next await; else from the disk."""
        fd = self.descriptor(handle)
        if self._remote and (remote := self._remote_of(fd)) is not None:
            try:
                return await in_thread(_read_fully, fd, size, offset, of=remote)
            except OSError as error:
                remote.note(error)
                raise
        if self._nowait and size <= BUFFER:
            buffer = self._buffer
            count = 0
            try:
                # a short answer would mean the end of the file: where it is short, ask again whether that is true
                while count < size:
                    more = os.preadv(fd, [buffer[count:size]], offset + count, self._nowait)
                    if more == 0:
                        break
                    count += more
                return buffer[:count]
            except OSError as error:
                if error.errno == EOPNOTSUPP:
                    self._nowait = 0
                elif error.errno not in (EAGAIN, EINVAL):
                    raise
        return await self._from_disk.call(size, _read_fully, fd, size, offset)

    def write(self, fd: int, offset: int, data: bytes | memoryview, drops_setid: bool = False) -> int:
        """Write to a file in upper."""
        if self._direct and fd in self._direct and offset != os.fstat(fd).st_size:
            raise OSError(EPERM, os.strerror(EPERM))  # only FUSE lets a program take O_APPEND from such a descriptor
        opened = self._open[fd]
        file = opened.file
        if (drops_setid or opened.clears_setid) and _drop_setid(file.address(), file.stat(), opened.in_group):
            self.changed_modes.append(file.id)  # before the write: what fails after it would be told, though it is made
        written = os.pwrite(fd, data, offset)
        file.written = True
        return written

    def leaves_stale(self, fd: int) -> int | None:
        """After a write: the number of the node if the kernel's page cache may now have what was there before. It
        clears the cache before a direct write and not after it, when another process may have read meanwhile."""
        opened = self._open[fd]
        if not opened.bypasses_cache:
            return None
        file = opened.file
        by_cache = file.handle is not None or any(not self._open[other].bypasses_cache for other in file.fds or ())
        return file.id if by_cache else None

    def is_written(self, file: File) -> bool:
        """Whether somebody has it open for writing."""
        return any(self._open[fd].writes for fd in file.fds or ())

    def may_be_mapped(self, file: File) -> bool:
        """Whether it may be written through a mapping, or may have been since somebody opened it."""
        for fd in file.fds or ():  # noqa: SIM110 - any() takes twice as long, and each change of attributes asks this
            if self._open[fd].maps:
                return True
        return False

    def kept_back(self, fd: int) -> bool:
        """Whether the kernel may hold data of the file that are not here yet; when nobody has it open for writing they
        are."""
        return self.writeback and self.is_written(self._open[self.descriptor(fd)].file)

    async def allocate(self, fd: int, mode: int, offset: int, length: int, caller: Caller) -> None:
        """fallocate(2) on a file that is open for writing."""
        file = self._open[fd].file
        require_allocation(file, mode)
        self._clear_setid(file, file.address(), caller)
        await in_thread(syscalls.fallocate, fd, mode, offset, length)
        file.written = True

    async def copy_range(
        self, source: int, offset: int, target: int, to: int, length: int, caller: Caller
    ) -> int:
        """copy_file_range(2), which shares blocks where the branch can. Of what comes from a branch that may not answer
        less is copied: no thread that waits for that may change a file."""
        file = self._open[target].file
        require_copying_into(file)
        source = self.descriptor(source)
        self._clear_setid(file, file.address(), caller)
        remote = self._remote_of(source)
        if remote is None:
            copied = await in_thread(os.copy_file_range, source, target, length, offset, to)
        else:
            data = await in_thread(_read_fully, source, min(length, BUFFER), offset, of=remote)
            copied = os.pwrite(target, data, to)
        file.written = True
        return copied

    async def seek(self, handle: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE of lseek(2)."""
        fd = self.descriptor(handle)
        remote = self._remote_of(fd)
        if remote is not None:
            return await in_thread(os.lseek, fd, offset, whence, of=remote)
        return os.lseek(fd, offset, whence)

    def _clear_setid(self, file: File, where: tuple[int, bytes], caller: Caller) -> None:
        """Before its data are changed, where the file is, or will be in a moment."""
        if clear_setid(where, caller, self._gids):
            self.changed_modes.append(file.id)

    def release(self, fd: int) -> None:
        """The kernel has closed the handle."""
        if fd >= FIRST:
            self.unopened.end(fd)
            return
        file = self._open.pop(fd).file
        remote = file.remote if fd in self._remote else None
        self._direct.discard(fd)
        self._remote.discard(fd)
        if file.fds is not None:
            file.fds.remove(fd)
        if self.writeback and file.written:
            self._put_back_mtime(fd, file)
        close(fd, remote)

    @staticmethod
    def _note_mtime(file: File, st: os.stat_result, truncates: bool) -> None:
        """With the writeback cache it is the kernel that knows when a file was changed, and it says so by setattr. It
        says nothing of a write within the same tick of its clock as the change before; but that write, when it comes
        here, moves the time on disk. So what the kernel knows is noted, and put back when the file is closed."""
        if not file.written:
            file.told_mtime_ns = st.st_mtime_ns
        file.written = file.written or truncates

    @staticmethod
    def _put_back_mtime(fd: int, file: File) -> None:
        file.written = False
        with suppress(PermissionError):  # times of an append-only file cannot be set
            os.utime(fd, ns=(os.fstat(fd).st_atime_ns, file.told_mtime_ns))

    async def fsync(self, handle: int, datasync: bool) -> None:
        """fsync(2) or fdatasync(2). A copy came by a rename, which fdatasync(2) of ext4 leaves out, so that its data
        would be where nothing leads to: the first sync is a whole one."""
        fd = self.descriptor(handle)
        remote = self._remote_of(fd)
        if not self._sync:
            self._tell_of_loss(fd if remote is None else -1)
            return
        file = self._open[fd].file
        if file.data is not None:
            await self._sync_metadata(file)
            return
        if remote is not None:
            await in_thread(os.fdatasync if datasync else os.fsync, fd, of=remote)
            return
        settles = file.in_upper and not file.settled
        sync = os.fdatasync if datasync and not settles else os.fsync
        await self._on_disk.call(os.fstat(fd).st_size, sync, fd)
        file.settled = file.settled or settles

    @staticmethod
    async def _sync_metadata(file: File) -> None:
        """Of a metadata-only copy, whose descriptors are of the file below."""
        fd = objects.open_file(*file.address(), os.O_RDONLY)
        try:
            await in_thread(os.fsync, fd)
        finally:
            os.close(fd)

    def _tell_of_loss(self, fd: int = -1) -> None:
        """Where nothing is synced, whoever wants to know of data that are lost is told so, from the first loss on for
        ever, as by overlayfs. Of each file only its own descriptors know."""
        if not self._lost and fd >= 0:
            try:
                syscalls.check_written_back(fd)
            except OSError as error:
                self._lost = error.errno or EIO
                log.error("data in upper are lost (%s): it is not what was written", error.strerror)
        if self._lost:
            raise OSError(self._lost, os.strerror(self._lost))

    async def fsync_directory(self, directory: Directory) -> None:
        """Names that were made, moved or removed in a directory of upper reach the disk."""
        if not self._sync:
            self._tell_of_loss()
        if self._sync and directory.in_upper and not directory.dead:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.layers[0].fd())
            try:
                await self._on_disk.call(0, os.fsync, fd)
            finally:
                os.close(fd)

    def close_all(self) -> None:
        """Give all descriptors back at the end of the mount."""
        self.unopened.close_all()
        for fd in list(self._open):
            self.release(fd)


def _read_fully(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    while data and len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def without_setid(mode: int, in_group: bool) -> int:
    """A mode as it is after a change of the data by somebody without CAP_FSETID. Setgid without group execute is no
    setgid, and goes only with a change from outside the group."""
    mode &= ~S_ISUID
    return mode & ~S_ISGID if mode & S_IXGRP or not in_group else mode


def _cut(fd: int, flags: int) -> None:
    """To nothing; open(2) with O_TRUNC does so for those who open to read, too."""
    if flags & _WRITES:
        os.ftruncate(fd, 0)
    else:
        objects.truncate(fd, b"", 0)


def _drop_setid(where: tuple[int, bytes], st: os.stat_result, in_group: bool) -> bool:
    """Take setuid and setgid from a file as far as they go; whether its mode changed."""
    mode = S_IMODE(st.st_mode)
    kept = without_setid(mode, in_group)
    if kept != mode:
        objects.chmod(*where, kept)
    return kept != mode


def clear_setid(where: tuple[int, bytes], caller: Caller, gids: Mapping) -> bool:
    """What a change of the data by this caller does to setuid and setgid, as file_remove_privs() in the kernel; whether
    it did. As there it comes before the change. If that fails they are not given back: somebody else may have changed
    the data meanwhile."""
    st = objects.stat(*where)
    if not st.st_mode & (S_ISUID | S_ISGID) or is_capable(caller, CAP_FSETID):
        return False
    return _drop_setid(where, st, is_member(caller, gids.shown(st.st_gid)))
