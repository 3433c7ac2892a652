"""The requests that pyfuse3 does not have: decoded from the wire, answered on the wire.

Owns their layouts (linux/fuse.h) and nothing of what they do, which is pyunion.fs. The extension hands them to `hook`;
one that may take long goes on as a task of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from pyunion.fs.filesystem import FileSystem
from pyunion.fs.lookup import attributes, link_count
from pyunion.fs.nodes import File
from pyunion.fuse.guard import in_flight
from pyunion.fuse.operations import FOREVER_S, send_and_drop_pages

log = logging.getLogger(__name__)

_IOCTL, _FALLOCATE, _LSEEK, _COPY_FILE_RANGE, _TMPFILE, _STATX = 39, 43, 46, 47, 51, 52
_RETRY_COPY = 1 << 30  # copy_file_range(2) may copy less; the caller asks again for the rest

_OUT_HEADER = struct.Struct("=IiQ")
_LSEEK_IN = struct.Struct("=QqI")
_FALLOCATE_IN = struct.Struct("=QQQI")
_COPY_IN = struct.Struct("=QQQQQQQ")
_CREATE_IN = struct.Struct("=IIII")
_STATX_IN = struct.Struct("=IIQII")
_IOCTL_IN = struct.Struct("=QIIQII")
_IOCTL_OUT = struct.Struct("=iIII")
_ENTRY_OUT = struct.Struct("=QQQQII")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_OPEN_OUT = struct.Struct("=QII")
_FOPEN_KEEP_CACHE = 2


class Request(NamedTuple):
    """Header of a request, and its caller as pyunion.fs knows callers."""

    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    umask: int = 0


class RawRequests:
    """Answers the requests for one session.

    `start` runs a task, as a nursery's start_soon; `tell_modes` tells the kernel of modes that a write has changed.
    """

    def __init__(
        self,
        fs: FileSystem,
        start: Callable[..., None],
        session_fd: Callable[[], int],
        tell_modes: Callable[[], None],
    ) -> None:
        self._fs = fs
        self._start = start
        self._tell_modes = tell_modes
        self._session_fd = session_fd
        # a quick handler that returns None leaves the answer to the slow one
        self._quick: dict[int, Callable[[Request, bytes], bytes | None]] = {
            _LSEEK: self._lseek,
            _TMPFILE: self._tmpfile,
            _STATX: self._statx,
        }
        self._slow: dict[int, Callable[[Request, bytes], Awaitable[bytes]]] = {
            _LSEEK: self._lseek_written,
            _FALLOCATE: self._fallocate,
            _COPY_FILE_RANGE: self._copy_file_range,
            _IOCTL: self._ioctl,
        }
        self.opcodes = frozenset({*self._quick, *self._slow})

    def hook(self, opcode: int, unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> bool:
        """Called by the extension for each request with one of our opcodes."""
        request = Request(unique, node, uid, gid, pid)
        quick = self._quick.get(opcode)
        try:
            answer = None if quick is None else quick(request, body)
        except Exception as error:
            self._reply(unique, _errno_of(error, opcode), b"")
            return True
        if answer is not None:
            self._reply(unique, 0, answer)
        else:
            in_flight.count += 1  # from here on, and not only when the task begins: until then trio has to run
            self._start(self._answer, opcode, request, body)
        return True

    async def _answer(self, opcode: int, request: Request, body: bytes) -> None:
        try:
            self._reply(request.unique, 0, await self._slow[opcode](request, body))
        except Exception as error:
            self._reply(request.unique, _errno_of(error, opcode), b"")
        finally:
            in_flight.count -= 1

    def _reply(self, unique: int, number: int, data: bytes) -> None:
        try:
            os.writev(self._session_fd(), [_OUT_HEADER.pack(_OUT_HEADER.size + len(data), -number, unique), data])
        except OSError as error:
            if error.errno != errno.ENOENT:  # interrupted: nobody waits for the answer any more
                log.warning("a reply was refused: %s", error.strerror)

    def _owner(self, st: os.stat_result) -> tuple[int, int]:
        owners = self._fs.settings.owners
        return owners.uids.shown(st.st_uid), owners.gids.shown(st.st_gid)

    def _attributes(self, node: File, st: os.stat_result) -> bytes:
        times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        seconds, parts = zip(*(divmod(ns, 10**9) for ns in times), strict=True)
        return _ATTR.pack(
            node.ino, st.st_size, st.st_blocks, *seconds, *parts,
            st.st_mode, st.st_nlink, *self._owner(st), st.st_rdev, st.st_blksize, 0,
        )  # fmt: skip

    # -- one for each request ---------------------------------------------------------------------------------

    def _lseek(self, request: Request, body: bytes) -> bytes | None:
        """SEEK_DATA and SEEK_HOLE: the branch knows, unless the kernel holds something back."""
        fh, offset, whence = _LSEEK_IN.unpack_from(body)
        if self._fs.files.kept_back(fh):
            return None
        return struct.pack("=Q", os.lseek(fh, offset, whence))

    async def _lseek_written(self, request: Request, body: bytes) -> bytes:
        fh, offset, whence = _LSEEK_IN.unpack_from(body)
        await send_and_drop_pages(request.node)
        return struct.pack("=Q", os.lseek(fh, offset, whence))

    async def _fallocate(self, request: Request, body: bytes) -> bytes:
        fh, offset, length, mode = _FALLOCATE_IN.unpack_from(body)
        await self._fs.files.allocate(fh, mode, offset, length, request)
        self._tell_modes()
        return b""

    async def _copy_file_range(self, request: Request, body: bytes) -> bytes:
        source, offset, _, target, to, length, _ = _COPY_IN.unpack_from(body)
        copied = await self._fs.files.copy_range(source, offset, target, to, min(length, _RETRY_COPY), request)
        self._tell_modes()
        return struct.pack("=II", copied, 0)

    def _tmpfile(self, request: Request, body: bytes) -> bytes:
        flags, mode, umask, _ = _CREATE_IN.unpack_from(body)
        fs = self._fs
        node, st, fd = fs.create.nameless(fs.directory(request.node), mode, request._replace(umask=umask))
        fs.files.add_new(fd, node, flags)
        node.lookups += 1
        entry = _ENTRY_OUT.pack(node.ino, 0, FOREVER_S, FOREVER_S, 0, 0)
        return entry + self._attributes(node, st) + _OPEN_OUT.pack(fd, _FOPEN_KEEP_CACHE, 0)

    def _statx(self, request: Request, body: bytes) -> bytes:
        _, _, _, _, mask = _STATX_IN.unpack_from(body)
        node = self._fs.node(request.node)
        answer = self._fs.attributes.statx(node, mask)
        number = self._fs.root_number if node is self._fs.table.root else node.ino
        st = attributes(node)
        struct.pack_into("=III", answer, 16, link_count(node, st), *self._owner(st))
        struct.pack_into("=Q", answer, 32, number)
        return struct.pack("=QIIQQ", FOREVER_S, 0, 0, 0, 0) + bytes(answer)

    async def _ioctl(self, request: Request, body: bytes) -> bytes:
        _, _, command, _, in_size, out_size = _IOCTL_IN.unpack_from(body)
        argument = bytearray(body[_IOCTL_IN.size : _IOCTL_IN.size + in_size].ljust(max(in_size, out_size), b"\0"))
        await self._fs.attributes.ioctl(self._fs.node(request.node), command, argument)
        return _IOCTL_OUT.pack(0, 0, 0, 0) + bytes(argument[:out_size])


def _errno_of(error: Exception, opcode: int) -> int:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    log.error("request %d failed; the caller gets EIO", opcode, exc_info=error)
    return errno.EIO


