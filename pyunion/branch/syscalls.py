"""The Linux system calls that `os` does not have, as plain functions that raise OSError.

Owns the ctypes bindings and the constants that go with them. Knows nothing of branches or unions.
Numbers are the generic ones shared by x86_64, aarch64 and every architecture since Linux 5.1.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from errno import EINTR, EINVAL, ENOSYS, EPERM, ESPIPE
from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 2

FICLONE = 0x40049409  # ioctl_ficlone(2)

_OPEN_TREE = 428
_MOUNT_SETATTR = 442
_FCHMODAT2 = 452
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOATIME = 0x10
_MOUNT_ATTR__ATIME = 0x70
_MS_REMOUNT = 0x20
_MS_NOATIME = 0x400
_MS_BIND = 0x1000
_MS_REC = 0x4000
_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7
_BEYOND_ALL_FILES = 1 << 60
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_GET_SECUREBITS = 27
_SECBIT_NO_SETUID_FIXUP = 1 << 2

_STATX_SIZE = 256
_STATX = ctypes.c_char * _STATX_SIZE
_HANDLE = struct.Struct("=Ii")
_MAX_HANDLE = 128

_libc = ctypes.CDLL(None, use_errno=True)
_c_ulong = ctypes.c_ulong


def _call(function: Callable[..., int], *arguments: Any, path: bytes | None = None) -> int:
    """A call that a signal has interrupted is made again, as those of `os` are (PEP 475)."""
    while (result := function(*arguments)) < 0:
        number = ctypes.get_errno()
        if number != EINTR:
            raise OSError(number, os.strerror(number), path)
    return result


def trim_memory() -> None:
    """Give freed memory back to the system: malloc_trim(3), which only glibc has."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def renameat2(olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int) -> None:
    """renameat2(2); EINVAL where the file system does not know a flag."""
    _call(_libc.renameat2, olddirfd, old, newdirfd, new, flags, path=old)


def umount2(path: bytes, flags: int) -> None:
    """umount2(2)."""
    _call(_libc.umount2, path, flags, path=path)


def reflink(src_fd: int, dst_fd: int) -> None:
    """Make dst share all of src's data (ioctl_ficlone(2)); OSError where the file system cannot."""
    fcntl.ioctl(dst_fd, FICLONE, src_fd)


def chmod_nofollow(dirfd: int, name: bytes, mode: int) -> None:
    """chmod of an entry that is never followed if it is a symlink; fchmodat2(2), Linux 6.6, or by descriptor."""
    global _have_fchmodat2
    if _have_fchmodat2:
        try:
            _call(_libc.syscall, _FCHMODAT2, dirfd, name, mode, AT_SYMLINK_NOFOLLOW, path=name)
            return
        except OSError as error:
            if error.errno not in (ENOSYS, EPERM):  # EPERM is what some seccomp filters give for an unknown call
                raise
            if error.errno == ENOSYS:
                _have_fchmodat2 = False
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


_have_fchmodat2 = True


def open_readonly_clone(path: bytes) -> int:
    """A directory descriptor on a detached, read-only, atime-free clone of the mount that `path` is on.

    Through it nothing can be changed, not even by /proc/self/fd; st_dev and st_ino are the branch's own.
    Mounts below `path` are not part of it. Needs CAP_SYS_ADMIN; ENOSYS before Linux 5.12 (mount_setattr(2)).
    """
    fd = _call(_libc.syscall, _OPEN_TREE, AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC, path=path)
    attr = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOATIME, _MOUNT_ATTR__ATIME, 0, 0)
    try:
        _call(_libc.syscall, _MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, ctypes.byref(attr), _c_ulong(32), path=path)
    except OSError:
        os.close(fd)
        raise
    return fd


def name_to_handle(dirfd: int, name: bytes) -> tuple[int, bytes]:
    """The file handle of an entry, or of the directory itself for the empty name: (type, bytes); open_by_handle_at(2).

    EOPNOTSUPP where the file system has no handles.
    """
    buffer = ctypes.create_string_buffer(8 + _MAX_HANDLE)
    _HANDLE.pack_into(buffer, 0, _MAX_HANDLE, 0)
    mount_id = ctypes.c_int()
    flags = 0 if name else AT_EMPTY_PATH
    _call(_libc.name_to_handle_at, dirfd, name, buffer, ctypes.byref(mount_id), flags, path=name)
    length, kind = _HANDLE.unpack_from(buffer)
    return kind, buffer.raw[8 : 8 + length]


def open_by_handle(mount_fd: int, kind: int, handle: bytes) -> int:
    """An O_PATH descriptor of the object. `mount_fd` is any open (not O_PATH) file of the file system.

    ESTALE where the object is gone. Needs CAP_DAC_READ_SEARCH.
    """
    buffer = _HANDLE.pack(len(handle), kind) + handle
    return _call(_libc.open_by_handle_at, mount_fd, buffer, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def filesystem_type(fd: int) -> int:
    """f_type of statfs(2): the magic number of the file system."""
    answer = (ctypes.c_long * 32)()  # struct statfs and some more
    _call(_libc.fstatfs, fd, answer)
    return int(answer[0])


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with all its modes."""
    _call(_libc.fallocate, fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def check_written_back(fd: int) -> None:
    """Raises the OSError that the kernel has met when it wrote back the file's data since the descriptor was opened, or
    was last asked. Writes nothing and waits for nothing: sync_file_range(2) on a part that no file has."""
    offset, length = ctypes.c_int64(_BEYOND_ALL_FILES), ctypes.c_int64(1)
    try:
        _call(_libc.sync_file_range, fd, offset, length, _SYNC_FILE_RANGE_WAIT_BEFORE)
    except OSError as error:
        if error.errno not in (ENOSYS, EINVAL, ESPIPE):  # it cannot be told
            raise


def write_and_wait(fd: int) -> None:
    """Write the file's data to the disk, as far as its cache, and wait for them: sync_file_range(2) with all flags.

    Other than fsync(2) it writes no metadata and flushes no disk. Raises the OSError of a failed write.
    """
    _call(_libc.sync_file_range, fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE_AND_WAIT)


def statx(dirfd: int, name: bytes, mask: int) -> bytearray:
    """statx(2) of an entry that is not followed, or of the descriptor's object for the empty name: the 256 bytes of
    struct statx."""
    answer = bytearray(_STATX_SIZE)
    flags = AT_SYMLINK_NOFOLLOW if name else AT_EMPTY_PATH
    _call(_libc.statx, dirfd, name, flags, mask, _STATX.from_buffer(answer), path=name)
    return answer


def enter_private_mount_namespace() -> None:
    """unshare(2) into a mount namespace whose changes nobody else sees. Needs CAP_SYS_ADMIN."""
    unshare(CLONE_NEWNS)
    set_propagation(b"/", MS_PRIVATE)


def unshare(flags: int) -> None:
    """unshare(2): new namespaces for this process, or with CLONE_NEWPID for its children. Needs CAP_SYS_ADMIN."""
    _call(_libc.unshare, flags)


def set_propagation(path: bytes, how: int) -> None:
    """Of a mount and all below it: MS_PRIVATE or MS_SLAVE (mount_namespaces(7))."""
    _call(_libc.mount, b"none", path, None, _c_ulong(_MS_REC | how), None, path=path)


def mount(source: bytes, path: bytes, kind: bytes, flags: int, options: bytes = b"") -> None:
    """mount(2) of a file system."""
    _call(_libc.mount, source, path, kind, _c_ulong(flags), options, path=path)


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    _call(_libc.pivot_root, new, old, path=new)


def die_with_parent() -> None:
    """SIGKILL when the thread that has forked us ends (PR_SET_PDEATHSIG, prctl(2))."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, _c_ulong(signal.SIGKILL), 0, 0, 0)


def bind_readonly(path: bytes) -> None:
    """Bind a directory, without the mounts below it, read-only onto itself (mount(2))."""
    _call(_libc.mount, path, path, None, _c_ulong(_MS_BIND), None, path=path)
    _call(_libc.mount, b"none", path, None, _c_ulong(_MS_BIND | _MS_REMOUNT | MS_RDONLY | _MS_NOATIME), None, path=path)


def keep_capabilities_over_setfsuid() -> bool:
    """Let this thread change its fsuid without losing CAP_DAC_OVERRIDE and the like (capabilities(7)).

    Returns whether it worked; it needs CAP_SETPCAP. Threads started later inherit it.
    """
    bits: int = _libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    return bits >= 0 and _libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0


def set_filesystem_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) of this thread: who owns what it creates. Both never fail."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)


def syncfs(fd: int) -> None:
    """Write everything of the file system of an open file to its disk (syncfs(2))."""
    _call(_libc.syncfs, fd)
