"""The request handlers for the extension: bytes of a request in, one call of pyunion.fs, bytes of the reply out.

They do what pyunion/fuse/operations.py does without the extension, and more: pyfuse3 has no open flags for passthrough
and no requests for holes, nameless files or inode flags. Owns which handler a request goes to; layouts are layout.py.
A handler may be asynchronous: it is run at once, and gets a task only if it has to wait.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Coroutine
from functools import partial
from stat import S_IMODE, S_ISGID, S_ISUID
from types import CoroutineType
from typing import Any, NamedTuple

import trio

from pyunion.fs.attributes import Changes
from pyunion.fs.callers import is_dying
from pyunion.fs.filesystem import FileSystem
from pyunion.fs.interruption import Interruption, interruption
from pyunion.fs.listing import DOTS, as_far_as_known
from pyunion.fs.lookup import attributes, link_count
from pyunion.fs.nodes import ROOT, File, Node
from pyunion.fs.waiting import Unanswered, patiently, quickly
from pyunion.fuse import layout, tally, wire
from pyunion.fuse.backing import Backing
from pyunion.fuse.guard import errno_of, in_flight
from pyunion.fuse.layout import Op
from pyunion.fuse.operations import doubting, drop_attributes, drop_name, keep_no_miss, modes_told, send_and_drop_pages
from pyunion.fuse.repeated import ONLY_LOOK, Repeated

_LOOK_S = 0.5  # between two looks whether a caller that got a signal is dying
_RETRY_COPY = 1 << 30  # copy_file_range(2) may copy less; the caller asks again for the rest

# What a handler gives back: the reply's bytes, an errno, None if the kernel wants no reply; or a coroutine that will.
Reply = bytes | bytearray | memoryview | int | None


class Request(NamedTuple):
    """The header of a request, and its caller as pyunion.fs knows callers."""

    node: int
    uid: int
    gid: int
    pid: int
    umask: int = 0


class RawRequests:
    """Answers the requests of one session. `start` runs a task, as a nursery's start_soon."""

    def __init__(self, fs: FileSystem, backing: Backing, start: Callable[..., None]) -> None:
        self._fs = fs
        self._table = fs.table
        self._nodes = fs.table.nodes
        self._repeated = Repeated(fs.table)
        self._backing = backing
        self._start = start
        self._interruptions: dict[int, tuple[Interruption, Request]] = {}  # of requests that wait, by their numbers
        owners = fs.settings.owners
        self._owners = None if owners.all_as_stored else owners
        self._of_node: dict[int, Callable[[int, bytes], Reply | Coroutine[Any, Any, Reply]]] = {
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self._link,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._release,
            Op.FSYNC: self._fsync,
            Op.GETXATTR: self._getxattr,
            Op.REMOVEXATTR: self._removexattr,
            Op.FLUSH: lambda node, body: errno.ENOSYS,  # nothing is to be done at close, and the kernel asks no more
            Op.INIT: self._begin,
            Op.OPENDIR: self._opendir,
            Op.READDIRPLUS: self._readdirplus,
            Op.RELEASEDIR: lambda node, body: b"",
            Op.FSYNCDIR: self._fsyncdir,
            Op.ACCESS: lambda node, body: errno.ENOSYS,  # the kernel checks permissions itself
            Op.INTERRUPT: self._interrupt,
            Op.LSEEK: self._lseek,
            Op.STATX: self._statx,
            Op.IOCTL: self._ioctl,
        }
        self._of_caller: dict[int, Callable[[Request, bytes], Reply | Coroutine[Any, Any, Reply]]] = {
            Op.SETATTR: self._setattr,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.OPEN: self._open,
            Op.SETXATTR: self._setxattr,
            Op.LISTXATTR: self._listxattr,
            Op.CREATE: self._create,
            Op.FALLOCATE: self._fallocate,
            Op.COPY_FILE_RANGE: self._copy_file_range,
            Op.TMPFILE: self._tmpfile,
        }
        self.opcodes = frozenset({*self._of_node, *self._of_caller})

    def hook(self, opcode: int, unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> Reply:
        """Called by the extension for each request with one of our opcodes. True: a task will reply."""
        tally.requests[opcode] += 1
        if opcode not in ONLY_LOOK:
            self._table.epoch += 1
        question = begun = None
        try:
            handler = self._of_node.get(opcode)
            if handler is not None:
                answer = handler(node, body)
            else:
                answer = self._of_caller[opcode](Request(node, uid, gid, pid), body)
            if type(answer) is not CoroutineType:
                return answer  # type: ignore[return-value]
            done = quickly(answer)
            if done is not None:
                return done.result  # type: ignore[no-any-return]
            begun = answer
        except Unanswered as unanswered:
            question = unanswered.question
        except Exception as error:
            if not self._makes_room(error):
                return errno_of(error, opcode)
        in_flight.count += 1  # from here on, and not only when the task begins: until then trio has to run
        request = Request(node, uid, gid, pid)
        self._interruptions[unique] = Interruption(), request
        again = partial(self._of_caller[opcode], request, body) if handler is None else partial(handler, node, body)
        self._start(self.finish, opcode, unique, self._twice(again, patiently(again, question, begun)))
        return True

    def _makes_room(self, error: Exception) -> bool:
        """Whether a request may be begun again, as it lacked a descriptor and there are more now: those of directories
        are kept for speed only. A request that fails leaves all as it was."""
        return isinstance(error, OSError) and error.errno == errno.EMFILE and self._fs.cache.close_all()

    async def _twice(self, again: Callable[[], Any], rest: Coroutine[Any, Any, Reply]) -> Reply:
        try:
            return await rest
        except OSError as error:
            if not self._makes_room(error):
                raise
        reply: Reply = await patiently(again)
        return reply

    async def finish(self, opcode: int, unique: int, rest: Coroutine[Any, Any, Reply]) -> None:
        """The task of a request that has to wait."""
        interruption.set(self._interruptions[unique][0])
        try:
            wire.reply(unique, await rest)
        except Exception as error:
            wire.reply(unique, errno_of(error, opcode))
        finally:
            del self._interruptions[unique]
            in_flight.count -= 1

    def _interrupt(self, node: int, body: bytes) -> None:
        """Somebody who waits for a request got a signal. It may be answered already."""
        (unique,) = layout.HANDLE.unpack_from(body)
        if unique in self._interruptions:
            self._start(self._interrupt_when_dying, unique)

    async def _interrupt_when_dying(self, unique: int) -> None:
        """Only who dies wants no answer any more: others, whose signal has a handler, would take EINTR for a failure of
        calls such as stat(2). The kernel tells of the first signal only, so they are looked after until the end."""
        while unique in self._interruptions:
            mine, caller = self._interruptions[unique]
            if is_dying(caller):
                mine.tell()
                return
            await trio.sleep(_LOOK_S)

    # -- parts of replies -------------------------------------------------------------------------------------

    def _attributes(self, node: Node, st: os.stat_result) -> bytes:
        links = st.st_nlink if not (node.is_dir or node.hidden_links) else link_count(node, st)
        number = node.ino if node.ino != ROOT else self._fs.root_number
        uid, gid = st.st_uid, st.st_gid
        if self._owners is not None:
            uid, gid = self._owners.uids.shown(uid), self._owners.gids.shown(gid)
        return layout.attributes(number, links, uid, gid, st)

    def _valid_s(self, node: Node, st: os.stat_result) -> int:
        """How long the kernel may keep attributes. Writes that pass us by change them: after write(2) it knows to ask
        again, but not that a setuid bit is gone; and of writes to a mapping it knows nothing, not even the times."""
        if not isinstance(node, File):
            return layout.FOREVER_S
        if node.former:  # the kernel takes it for several files
            return 0
        if node.id not in self._backing:
            return layout.FOREVER_S
        unseen = st.st_mode & (S_ISUID | S_ISGID) or self._fs.files.may_be_mapped(node)
        return 0 if unseen else layout.FOREVER_S

    def _entry(self, node: Node, st: os.stat_result) -> bytes:
        """A reply that gives the kernel a reference to the node."""
        node.lookups += 1
        return layout.entry_reply(node.id, self._attributes(node, st), self._valid_s(node, st))

    def _attr(self, node: Node, st: os.stat_result) -> bytes:
        return layout.attr_reply(self._attributes(node, st), self._valid_s(node, st))

    def _opened(self, number: int, file: File, fd: int, st: os.stat_result | None = None) -> bytes:
        backing = self._backing.of(number, file, fd, st)
        if backing:
            return layout.open_reply(fd, layout.FOPEN_PASSTHROUGH, backing)
        direct = layout.FOPEN_DIRECT_IO if self._fs.files.is_direct(fd) else 0
        return layout.open_reply(fd, layout.FOPEN_KEEP_CACHE | direct)

    def _begin(self, node: int, body: bytes) -> None:
        """INIT was answered, and what the kernel has granted counts from the next request on."""
        granted = wire.granted()
        files = self._fs.files
        files.kernel_tells_setid = wire.Init.HANDLE_KILLPRIV_V2 in granted
        self._backing.granted = files.kernel_writes = wire.Init.PASSTHROUGH in granted
        files.writeback = files.writeback and not self._backing.granted

    # -- look-up and attributes -------------------------------------------------------------------------------

    def _lookup(self, parent: int, body: bytes) -> Reply:
        fs = self._fs
        if len(fs.cache) > fs.cache.limit:
            fs.cache.trim()
        name = body[:-1]
        if len(name) > fs.name_max:
            return errno.ENAMETOOLONG
        directory = fs.directory(parent)
        entry = fs.lookup.child(directory, name)
        if entry is not None:
            return self._entry(*entry)
        if directory.dead:
            keep_no_miss(directory, name)
        return layout.NO_ENTRY

    def _forget(self, node: int, body: bytes) -> None:
        self._table.forget([(node, *layout.FORGET.unpack(body))])

    def _batch_forget(self, node: int, body: bytes) -> None:
        self._repeated.clear()  # which it would hold until the next listing
        self._table.forget(layout.forgotten(body))

    def _getattr(self, number: int, body: bytes) -> bytes:
        node = self._nodes[number]
        return self._attr(node, attributes(node))

    async def _setattr(self, request: Request, body: bytes) -> bytes:
        valid, fh, size, atime, mtime, atime_ns, mtime_ns, mode, uid, gid = layout.SETATTR.unpack_from(body)
        node = self._nodes[request.node]
        now = time.time_ns() if valid & (layout.ATIME_NOW | layout.MTIME_NOW) else 0
        atime_ns = now if valid & layout.ATIME_NOW else atime * 10**9 + atime_ns
        mtime_ns = now if valid & layout.MTIME_NOW else mtime * 10**9 + mtime_ns
        changes = Changes(
            size if valid & layout.SET_SIZE else None,
            uid if valid & layout.SET_UID else None,
            gid if valid & layout.SET_GID else None,
            S_IMODE(mode) if valid & layout.SET_MODE else None,
            atime_ns if valid & layout.SET_ATIME else None,
            mtime_ns if valid & layout.SET_MTIME else None,
            bool(valid & layout.ATIME_NOW),
        )
        handle = fh if valid & layout.SET_BY_HANDLE else None
        with doubting(request.node):
            return self._attr(node, await self._fs.attributes.change(node, changes, handle, request))

    def _readlink(self, number: int, body: bytes) -> bytes:
        return self._fs.attributes.read_link(self._nodes[number])

    def _statfs(self, node: int, body: bytes) -> bytes:
        return layout.statfs_reply(self._fs.space())

    def _statx(self, number: int, body: bytes) -> bytes:
        (mask,) = layout.STATX.unpack_from(body)
        node = self._nodes[number]
        return layout.statx_reply(self._fs.attributes.statx(node, mask), self._attributes(node, attributes(node)))

    async def _ioctl(self, number: int, body: bytes) -> bytes:
        _, command, in_size, out_size = layout.IOCTL.unpack_from(body)
        given = body[layout.IOCTL.size : layout.IOCTL.size + in_size]
        argument = bytearray(given.ljust(max(in_size, out_size), b"\0"))
        await self._fs.attributes.ioctl(self._nodes[number], command, argument)
        drop_attributes(number)  # which the kernel does not know to have changed
        return layout.IOCTL_OUT.pack(0, 0, 0, 0) + bytes(argument[:out_size])

    # -- names ------------------------------------------------------------------------------------------------

    def _mknod(self, request: Request, body: bytes) -> bytes:
        mode, rdev, umask = layout.MKNOD.unpack_from(body)
        (name,) = layout.names(body, layout.MKNOD.size)
        parent = self._fs.directory(request.node)
        return self._entry(*self._fs.create.special(parent, name, mode, rdev, request._replace(umask=umask)))

    def _mkdir(self, request: Request, body: bytes) -> bytes:
        mode, umask = layout.MKDIR.unpack_from(body)
        (name,) = layout.names(body, layout.MKDIR.size)
        parent = self._fs.directory(request.node)
        return self._entry(*self._fs.create.directory(parent, name, mode, request._replace(umask=umask)))

    def _symlink(self, request: Request, body: bytes) -> bytes:
        name, target = layout.names(body)
        return self._entry(*self._fs.create.symlink(self._fs.directory(request.node), name, target, request))

    async def _link(self, parent: int, body: bytes) -> bytes:
        (number,) = layout.LINK.unpack_from(body)
        (name,) = layout.names(body, layout.LINK.size)
        file = self._fs.file(number)
        return self._entry(file, await self._fs.create.link(file, self._fs.directory(parent), name))

    async def _unlink(self, parent: int, body: bytes) -> bytes:
        await self._fs.remove.file(self._fs.directory(parent), body[:-1])
        return b""

    def _rmdir(self, parent: int, body: bytes) -> bytes:
        self._fs.remove.directory(self._fs.directory(parent), body[:-1])
        return b""

    async def _rename(self, parent: int, body: bytes) -> bytes:
        (target,) = layout.RENAME.unpack_from(body)
        old, new = layout.names(body, layout.RENAME.size)
        await self._fs.rename.rename(self._fs.directory(parent), old, self._fs.directory(target), new, 0)
        return b""

    async def _rename2(self, parent: int, body: bytes) -> bytes:
        target, flags = layout.RENAME2.unpack_from(body)
        old, new = layout.names(body, layout.RENAME2.size)
        await self._fs.rename.rename(self._fs.directory(parent), old, self._fs.directory(target), new, flags)
        return b""

    # -- files ------------------------------------------------------------------------------------------------

    def _open(self, request: Request, body: bytes) -> Reply | Coroutine[Any, Any, Reply]:
        flags, _ = layout.OPEN.unpack(body)
        file = self._fs.file(request.node)
        handle = self._fs.files.open_without_descriptor(file, flags)
        if handle:
            return layout.open_reply(handle, layout.FOPEN_KEEP_CACHE)
        return self._open_now(request, file, flags)

    async def _open_now(self, request: Request, file: File, flags: int) -> bytes | int:
        with modes_told(self._fs.files):
            fd = await self._fs.files.open(file, flags, request)
        # By an id of before only what is reached by no name any more may be read on, as from /proc/PID/fd: the kernel
        # may not have heard yet that another name of the file has to be looked up anew.
        by_name = request.node == file.id or file.aliases is not None
        if self._backing.is_outdated(request.node, file) and (by_name or flags & os.O_ACCMODE):
            self._fs.files.release(fd)
            if request.node == file.id:
                self._renew(file)
            return errno.ESTALE  # the kernel then looks the name up anew, if it has one, and opens what it finds
        reply = self._opened(request.node, file, fd)
        if file.id in self._backing and self._fs.files.may_be_mapped(file):
            drop_attributes(file.id)
        return reply

    def _renew(self, file: File) -> None:
        drop_attributes(file.id)
        for parent, name in file.aliases or ():
            drop_name(parent.id, name)
        if file.aliases and file.parent is not None:  # it may be any of the names that was opened
            drop_name(file.parent.id, file.name)
        self._fs.table.renew(file)

    def _create(self, request: Request, body: bytes) -> bytes:
        flags, mode, umask = layout.CREATE.unpack_from(body)
        (name,) = layout.names(body, layout.CREATE.size)
        parent = self._fs.directory(request.node)
        request = request._replace(umask=umask)
        return self._created(*self._fs.create.file(parent, name, mode, request), flags, request)

    def _tmpfile(self, request: Request, body: bytes) -> bytes:
        flags, mode, umask = layout.CREATE.unpack_from(body)
        parent = self._fs.directory(request.node)
        request = request._replace(umask=umask)
        return self._created(*self._fs.create.nameless(parent, mode, request), flags, request)

    def _created(self, file: File, st: os.stat_result, fd: int, flags: int, caller: Request) -> bytes:
        self._fs.files.add_new(fd, file, st, flags, caller)
        opened = self._opened(file.id, file, fd, st)
        return self._entry(file, st) + opened

    async def _read(self, node: int, body: bytes) -> bytes | memoryview:
        return await self._fs.files.read(*layout.READ.unpack_from(body))

    async def _write(self, node: int, body: bytes) -> bytes:
        fh, offset, _, write_flags, _ = layout.WRITE.unpack_from(body)
        files = self._fs.files
        data = memoryview(body)[layout.WRITE.size :]
        with modes_told(files):
            written = files.write(fh, offset, data, bool(write_flags & layout.WRITE_KILLS_SUIDGID))
        stale = files.leaves_stale(fh)
        if stale is not None:
            await send_and_drop_pages(stale)
        return layout.WRITTEN.pack(written, 0)

    def _release(self, node: int, body: bytes) -> bytes:
        (fh,) = layout.HANDLE.unpack_from(body)
        self._fs.files.release(fh)
        self._backing.released(fh)
        return b""

    async def _fsync(self, node: int, body: bytes) -> bytes:
        fh, flags = layout.FSYNC.unpack_from(body)
        await self._fs.files.fsync(fh, bool(flags & layout.FSYNC_DATA_ONLY))
        return b""

    async def _lseek(self, node: int, body: bytes) -> bytes:
        """SEEK_DATA and SEEK_HOLE: the branch knows, once the kernel holds nothing back."""
        fh, offset, whence = layout.LSEEK.unpack_from(body)
        if self._fs.files.kept_back(fh):
            await send_and_drop_pages(node)
        return layout.OFFSET.pack(await self._fs.files.seek(fh, offset, whence))

    async def _fallocate(self, request: Request, body: bytes) -> bytes:
        fh, offset, length, mode = layout.FALLOCATE.unpack_from(body)
        with modes_told(self._fs.files):
            await self._fs.files.allocate(fh, mode, offset, length, request)
        return b""

    async def _copy_file_range(self, request: Request, body: bytes) -> bytes:
        source, offset, target, to, length = layout.COPY_FILE_RANGE.unpack_from(body)
        with modes_told(self._fs.files):
            copied = await self._fs.files.copy_range(source, offset, target, to, min(length, _RETRY_COPY), request)
        return layout.WRITTEN.pack(copied, 0)

    # -- directories ------------------------------------------------------------------------------------------

    def _opendir(self, number: int, body: bytes) -> Reply:
        """A listing needs no handle, and a kernel that knows ENOSYS here does not ask again."""
        if wire.Init.NO_OPENDIR_SUPPORT in wire.granted():
            return errno.ENOSYS
        return layout.open_reply(0, layout.FOPEN_CACHE_DIR | layout.FOPEN_KEEP_CACHE)

    def _readdirplus(self, number: int, body: bytes) -> bytes:
        _, offset, room = layout.READ.unpack_from(body)
        fs = self._fs
        directory = fs.directory(number)
        key = number, offset, room
        if not directory.in_upper and (reply := self._repeated.get(key)) is not None:
            return reply
        if len(fs.cache) > fs.cache.limit:
            fs.cache.trim()
        parts: list[bytes] = []
        nodes: list[Node] = []
        for name, node, st, following in as_far_as_known(fs.listings.entries(directory, offset)):
            is_dot = following <= DOTS  # which gives no reference
            attr = self._attributes(node, st)
            entry = layout.entry_reply(0 if is_dot else node.id, attr, self._valid_s(node, st))
            shown = fs.root_number if node.ino == ROOT else node.ino
            part = layout.directory_entry(entry, shown, following, st.st_mode, name)
            room -= len(part)
            if room < 0:
                if node.lookups == 0 and not is_dot:
                    fs.table.release(node)
                break
            if not is_dot:
                node.lookups += 1
                nodes.append(node)
            parts.append(part)
        reply = b"".join(parts)
        if not directory.in_upper:
            self._repeated.keep(key, reply, nodes)
        return reply

    async def _fsyncdir(self, number: int, body: bytes) -> bytes:
        await self._fs.files.fsync_directory(self._fs.directory(number))
        return b""

    # -- extended attributes ----------------------------------------------------------------------------------

    def _getxattr(self, number: int, body: bytes) -> Reply:
        room, _ = layout.GETXATTR.unpack_from(body)
        name = body[layout.GETXATTR.size : -1]
        node = self._nodes[number]
        if self._fs.attributes.lacks(node, name):
            return errno.ENODATA
        return layout.xattr_reply(self._fs.attributes.get_xattr(node, name), room)

    def _listxattr(self, request: Request, body: bytes) -> Reply:
        room, _ = layout.GETXATTR.unpack_from(body)
        found = self._fs.attributes.list_xattr(self._nodes[request.node], request)
        return layout.xattr_reply(layout.name_list(found), room)

    async def _setxattr(self, request: Request, body: bytes) -> bytes:
        size, flags = layout.SETXATTR.unpack_from(body)
        name, _, rest = body[layout.SETXATTR.size :].partition(b"\0")
        with doubting(request.node):
            await self._fs.attributes.set_xattr(self._nodes[request.node], name, rest[:size], request, flags)
        return b""

    async def _removexattr(self, number: int, body: bytes) -> bytes:
        await self._fs.attributes.remove_xattr(self._nodes[number], body[:-1])
        return b""
