"""File handles (open_by_handle_at(2)) and the identity of file systems, for origins in the kernel's encoding.

Owns which lower branches can answer for a handle. What is stored on disk is pyunion/union/origin.py.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from errno import EOPNOTSUPP, EPERM, ESTALE

from pyunion.branch import syscalls
from pyunion.branch.dirs import Branch, Dir
from pyunion.union import origin
from pyunion.union.origin import Origin

log = logging.getLogger(__name__)

_NO_UUID = bytes(16)
# ioctls that tell a file system's UUID: any, since Linux 6.9; ext4 before
_FS_IOC_GETFSUUID = 0x80111500
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Origins:
    """Which lower objects a handle can name in this mount."""

    def __init__(self, lowers: Sequence[Branch], stack: ExitStack) -> None:
        self._mounts: dict[bytes, int] = {}  # UUID -> a descriptor on that file system
        self._uuids: dict[Branch, bytes] = {}
        devices: dict[int, bytes | None] = {}
        for branch in lowers:
            device = os.fstat(branch.root.fd()).st_dev
            if device not in devices:
                devices[device] = self._identify(branch, stack)
            uuid = devices[device]
            if uuid is not None:
                self._uuids[branch] = uuid
        self._all = len(self._uuids) == len(lowers)

    def _identify(self, branch: Branch, stack: ExitStack) -> bytes | None:
        """The UUID of a branch's file system if its handles can be opened again; two without a UUID cannot be told
        apart, so only one counts."""
        fd = os.open(b".", _DIR, dir_fd=branch.root.fd())
        stack.callback(os.close, fd)
        uuid = filesystem_uuid(fd)
        if uuid in self._mounts:
            return None
        try:
            kind, fid = syscalls.name_to_handle(fd, b"")
            os.close(syscalls.open_by_handle(fd, kind, fid))
        except OSError as error:
            log.debug("no file handles in branch %r: %s", branch.path, error.strerror)
            return None
        self._mounts[uuid] = fd
        return uuid

    @property
    def usable(self) -> bool:
        """Whether every lower branch has handles: what the index needs."""
        return self._all

    def of(self, directory: Dir, name: bytes) -> bytes:
        """The origin of a lower object as it is stored; empty where its file system has no handles."""
        uuid = self._uuids.get(directory.branch)
        if uuid is None:
            return b""
        try:
            kind, fid = syscalls.name_to_handle(directory.fd(), name)
        except OSError as error:
            if error.errno == EOPNOTSUPP:
                return b""
            raise
        return origin.encode(Origin(kind, uuid, fid))

    def stat(self, value: bytes) -> os.stat_result | None:
        """The attributes of the lower object that a stored origin names; None where it names none in this mount."""
        decoded = origin.decode(value)
        mount = self._mounts.get(decoded.uuid) if decoded is not None else None
        if decoded is None or mount is None:
            return None
        try:
            fd = syscalls.open_by_handle(mount, decoded.type, decoded.fid)
        except OSError as error:
            if error.errno not in (ESTALE, EPERM):
                log.warning("cannot open the origin %s: %s", value.hex(), error.strerror)
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)


def filesystem_uuid(fd: int) -> bytes:
    """The UUID of the file system of an open directory; zero where it has none or does not tell it."""
    answer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
    except OSError:
        return _NO_UUID
    return bytes(answer[1:17])
