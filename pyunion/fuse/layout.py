"""The bytes of requests and replies (linux/fuse.h): their structures, and attributes and entries as they go out.

Owns layouts and the numbers in them. Knows nothing of what a request does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from enum import IntEnum
from errno import ERANGE

FOREVER_S = 10 * 365 * 86400
_NS = 10**9


class Op(IntEnum):
    """Requests, by their opcodes."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52


# Requests: what is behind the header. Names follow, each with a zero byte.
FORGET = struct.Struct("=Q")
_BATCH_FORGET = struct.Struct("=II")
_FORGET_ONE = struct.Struct("=QQ")
SETATTR = struct.Struct("=I4xQQ8xqq8xII4xI4xII4x")  # valid, fh, size, atime, mtime, their ns, mode, uid, gid
MKNOD = struct.Struct("=III4x")
MKDIR = struct.Struct("=II")
RENAME = struct.Struct("=Q")
RENAME2 = struct.Struct("=QI4x")
LINK = struct.Struct("=Q")
OPEN = struct.Struct("=II")
READ = struct.Struct("=QQI")
WRITE = struct.Struct("=QQII8xI4x")
HANDLE = struct.Struct("=Q")
FSYNC = struct.Struct("=QI")
SETXATTR = struct.Struct("=II")
GETXATTR = struct.Struct("=II")
CREATE = struct.Struct("=III4x")
LSEEK = struct.Struct("=QqI")
FALLOCATE = struct.Struct("=QQQI")
COPY_FILE_RANGE = struct.Struct("=QQ8xQQQ8x")
STATX = struct.Struct("=8x8x4xI")
IOCTL = struct.Struct("=Q4xI8xII")

# Replies
_ENTRY = struct.Struct("=QQQQII")
_ATTR_HEAD = struct.Struct("=QII")
_ATTR = struct.Struct("=QQQqqqIIIIIIIIII")  # times may be before 1970
_OPEN_OUT = struct.Struct("=QIi")
_STATFS = struct.Struct("=QQQQQIII28x")
_DIRENT = struct.Struct("=QQII")
WRITTEN = struct.Struct("=II")
XATTR_SIZE = struct.Struct("=II")
OFFSET = struct.Struct("=Q")
IOCTL_OUT = struct.Struct("=iIII")
STATX_HEAD = struct.Struct("=QIIQQ")

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_PASSTHROUGH = 1 << 7

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = (1 << bit for bit in range(6))
SET_BY_HANDLE, ATIME_NOW, MTIME_NOW = 1 << 6, 1 << 7, 1 << 8
FSYNC_DATA_ONLY = 1 << 0
WRITE_KILLS_SUIDGID = 1 << 2

NO_ENTRY = _ENTRY.pack(0, 0, FOREVER_S, 0, 0, 0) + bytes(_ATTR.size)  # "no such name", which the kernel keeps


def names(body: bytes, at: int = 0) -> list[bytes]:
    """The names behind the fixed part of a request."""
    return body[at:].split(b"\0")[:-1]


def forgotten(body: bytes) -> list[tuple[int, int]]:
    """Of a BATCH_FORGET: numbers of nodes, and how many references to each are given back."""
    count, _ = _BATCH_FORGET.unpack_from(body)
    start = _BATCH_FORGET.size
    return list(_FORGET_ONE.iter_unpack(body[start : start + count * _FORGET_ONE.size]))


def attributes(number: int, links: int, uid: int, gid: int, st: os.stat_result) -> bytes:
    """struct fuse_attr: what the union says itself, and the rest as the branch has it."""
    return _ATTR.pack(
        number, st.st_size, st.st_blocks, st[7], st[8], st[9],
        st.st_atime_ns % _NS, st.st_mtime_ns % _NS, st.st_ctime_ns % _NS,
        st.st_mode, links, uid, gid, st.st_rdev & 0xFFFFFFFF, st.st_blksize, 0,
    )  # fmt: skip


def attr_reply(attr: bytes, valid_s: int = FOREVER_S) -> bytes:
    """struct fuse_attr_out."""
    return _ATTR_HEAD.pack(valid_s, 0, 0) + attr


def entry_reply(node: int, attr: bytes, valid_s: int = FOREVER_S) -> bytes:
    """struct fuse_entry_out: a name that the kernel keeps, and a reference to its node."""
    return _ENTRY.pack(node, 0, FOREVER_S, valid_s, 0, 0) + attr


def open_reply(handle: int, flags: int, backing: int = 0) -> bytes:
    """struct fuse_open_out."""
    return _OPEN_OUT.pack(handle, flags, backing)


def statfs_reply(st: os.statvfs_result) -> bytes:
    """struct fuse_statfs_out."""
    return _STATFS.pack(
        st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize
    )


def directory_entry(entry: bytes, number: int, offset: int, kind: int, name: bytes) -> bytes:
    """struct fuse_direntplus. `offset` is where the listing goes on after it, `kind` the type as in st_mode."""
    padding = bytes(-len(name) % 8)
    return b"".join((entry, _DIRENT.pack(number, offset, len(name), kind >> 12), name, padding))


def xattr_reply(value: bytes, room: int) -> bytes | int:
    """A value, or its size if that is what was asked for (`room` is 0); ERANGE if it is too big."""
    if room == 0:
        return XATTR_SIZE.pack(len(value), 0)
    return value if len(value) <= room else ERANGE


def statx_reply(statx: bytearray, attr: bytes) -> bytes:
    """struct fuse_statx_out: what the branch says, with the number, links and owner of the union's attributes."""
    number, _, _, _, _, _, _, _, _, _, links, uid, gid, _, _, _ = _ATTR.unpack(attr)
    struct.pack_into("=III", statx, 16, links, uid, gid)
    struct.pack_into("=Q", statx, 32, number)
    return STATX_HEAD.pack(FOREVER_S, 0, 0, 0, 0) + bytes(statx)


def name_list(found: Sequence[bytes]) -> bytes:
    """Names of extended attributes as listxattr(2) has them."""
    return b"".join(name + b"\0" for name in found)
