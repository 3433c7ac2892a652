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
# What tells a file system's UUID as the kernel knows it: an ioctl, the size of its answer, and where the UUID is in it.
UUID_QUESTIONS = {
    "FS_IOC_GETFSUUID": (0x80111500, 17, 1),  # ext4, and from Linux 6.9 on most others
    "BTRFS_IOC_FS_INFO": (0x8400941F, 1024, 16),
    "XFS_IOC_FSGEOMETRY_V1": (0x80705864, 112, 64),
}
_FUSE_SUPER_MAGIC = 0x65735546  # statfs(2)
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Origins:
    """Which lower objects a handle can name in this mount."""

    def __init__(self, lowers: Sequence[Branch], stack: ExitStack) -> None:
        """`stack` closes it, if close() has not. Of two file systems that cannot be told apart the first one counts."""
        self._mounts: dict[bytes, tuple[Dir, int]] = {}  # UUID -> a root on that file system, and a descriptor
        self._uuids: dict[Branch, bytes] = {}
        devices: dict[int, bytes | None] = {}
        for branch in lowers:
            device = os.fstat(branch.root.fd()).st_dev
            if device not in devices:
                devices[device] = self._identify(branch)
            uuid = devices[device]
            if uuid is not None:
                self._uuids[branch] = uuid
        self._all = len(self._uuids) == len(lowers)
        stack.callback(self.close)

    def close(self) -> None:
        """From now on no handle names anything."""
        while self._mounts:
            os.close(self._mounts.popitem()[1][1])

    def _identify(self, branch: Branch) -> bytes | None:
        """The UUID of a branch's file system if its handles can be opened again; two without a UUID, or with the same
        one, cannot be told apart, so only one counts."""
        fd = os.open(b".", _DIR, dir_fd=branch.root.fd())
        uuid = None
        try:
            uuid = self._identify_open(branch, fd)
        finally:
            if uuid is None or self._mounts.setdefault(uuid, (branch.root, fd))[1] != fd:
                os.close(fd)
        return uuid

    def _identify_open(self, branch: Branch, fd: int) -> bytes | None:
        if syscalls.filesystem_type(fd) == _FUSE_SUPER_MAGIC:
            # They name an object as long as it is in memory, and later may name another one.
            log.debug("the file handles of branch %r, which is by FUSE, do not last", branch.path)
            return None
        uuid = filesystem_uuid(fd)
        _, mount = self._mounts.get(uuid, (branch.root, fd))
        try:
            return uuid if _is_found(fd, mount) else None
        except OSError as error:
            log.debug("no file handles in branch %r: %s", branch.path, error.strerror)
            return None

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
            kind, fid = directory.ask(syscalls.name_to_handle, name)
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
        root, fd = mount
        try:
            return root.ask(_stat_by_handle, fd, decoded.type, decoded.fid)
        except OSError as error:
            if error.errno not in (ESTALE, EPERM):
                log.warning("cannot open the origin %s: %s", value.hex(), error.strerror)
            return None


def _stat_by_handle(_: int, mount: int, kind: int, fid: bytes) -> os.stat_result:
    fd = syscalls.open_by_handle(mount, kind, fid)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _is_found(fd: int, mount: int) -> bool:
    """Whether the handle of a directory leads to it from another descriptor: so both are on one file system, of which
    btrfs has several devices. Raises OSError where there are no handles."""
    kind, fid = syscalls.name_to_handle(fd, b"")
    found = syscalls.open_by_handle(mount, kind, fid)
    try:
        return os.path.samestat(os.fstat(found), os.fstat(fd))
    finally:
        os.close(found)


def filesystem_uuid(fd: int) -> bytes:
    """The UUID of the file system of an open directory; zero where it has none or does not tell it."""
    for question in UUID_QUESTIONS:
        uuid = ask_uuid(fd, question)
        if uuid is not None:
            return uuid
    return _NO_UUID


def ask_uuid(fd: int, question: str) -> bytes | None:
    """The answer to one of UUID_QUESTIONS; None where the file system does not know it."""
    command, size, at = UUID_QUESTIONS[question]
    answer = bytearray(size)
    try:
        fcntl.ioctl(fd, command, answer)
    except OSError:
        return None
    return bytes(answer[at : at + 16])
