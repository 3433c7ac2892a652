"""What a branch can do, found out by trying it.

Owns the probes and the sentences that say why a feature is off. Writes only in the directory whose descriptor it is
given, and leaves nothing there; what follows from an answer is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from stat import S_IFCHR

from pyunion.branch import syscalls
from pyunion.errors import ExitCode, PyunionError
from pyunion.union import marks

_FILE = b"#probe-file"
_OTHER = b"#probe-other"
_MOVED = b"#probe-moved"
_SOURCE = b"#probe-source"

_DT_UNKNOWN = 0
_D_TYPE_OFFSET = 18  # in struct dirent of 64-bit Linux: d_ino, d_off, d_reclen, d_type


@dataclass(frozen=True, slots=True)
class UpperFeatures:
    """What an upper branch and its work directory allow."""

    xattr_prefix: bytes | None  # of the marks; None where no xattr can be set
    whiteout_device: bool
    rename_exchange: bool
    rename_whiteout: bool
    reflink: bool
    o_tmpfile: bool = False
    reasons: tuple[str, ...] = ()  # sentences about what is off


@dataclass(frozen=True, slots=True)
class LookFeatures:
    """What can be told of any branch without writing to it."""

    d_type: bool
    trusted_xattr: bool
    user_xattr: bool


def probe_upper(work_fd: int, want_userxattr: bool, full: bool = False) -> UpperFeatures:
    """Try in a work directory what an upper branch needs; with `full` also what is only good to know."""
    reasons: list[str] = []

    def works(attempt: Callable[[], object], otherwise: str, *, told: bool = True) -> bool:
        try:
            attempt()
        except OSError as error:
            if told:
                reasons.append(f"{otherwise} ({error.strerror})")
            return False
        return True

    def rename(old: bytes, new: bytes, flags: int) -> Callable[[], None]:
        return lambda: syscalls.renameat2(work_fd, old, work_fd, new, flags)

    fd = _create(work_fd, _FILE)
    try:
        prefix = _xattr_prefix(fd, want_userxattr, reasons)
        device = works(
            lambda: os.mknod(_OTHER, S_IFCHR, 0, dir_fd=work_fd),
            "whiteouts cannot be character devices, and have to be files with an xattr",
        )
        if not device:
            os.mknod(_OTHER, 0o600, dir_fd=work_fd)
        exchange = works(
            rename(_FILE, _OTHER, syscalls.RENAME_EXCHANGE),
            "two entries cannot be exchanged, and replacing a directory takes three steps",
        )
        whiteout = works(
            rename(_FILE, _MOVED, syscalls.RENAME_WHITEOUT),
            "a rename cannot leave a whiteout behind, and takes two steps",
        )
        return UpperFeatures(
            prefix,
            device,
            exchange,
            whiteout,
            reflink=works(
                lambda: _try_reflink(work_fd, fd), "files cannot share blocks, and copy_up copies all data", told=full
            ),
            o_tmpfile=full and works(lambda: _try_tmpfile(work_fd), "there are no nameless files"),
            reasons=tuple(reasons),
        )
    finally:
        os.close(fd)
        for name in (_FILE, _OTHER, _MOVED):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=work_fd)


def _xattr_prefix(fd: int, want_userxattr: bool, reasons: list[str]) -> bytes | None:
    """The strongest form of marks that can be written: trusted.* unless it is not wanted, else user.*."""
    for prefix in (marks.USER,) if want_userxattr else (marks.TRUSTED, marks.USER):
        try:
            os.setxattr(fd, prefix + marks.OPAQUE, b"0")
            return prefix
        except OSError as error:
            why = error.strerror
            if error.errno == errno.EPERM and prefix == marks.TRUSTED:
                why = "it takes CAP_SYS_ADMIN"
            reasons.append(f"marks cannot be {os.fsdecode(prefix)}* ({why})")
    return None


def _create(work_fd: int, name: bytes) -> int:
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=work_fd)
    except OSError as error:
        where = os.fsdecode(os.readlink(f"/proc/self/fd/{work_fd}"))
        raise PyunionError(f"nothing can be created in {where}: {error.strerror}", ExitCode.WORK) from None


def _try_reflink(work_fd: int, target: int) -> None:
    source = _create(work_fd, _SOURCE)
    try:
        os.unlink(_SOURCE, dir_fd=work_fd)
        os.write(source, b"shared")  # an empty file can be shared everywhere
        syscalls.reflink(source, target)
    finally:
        os.close(source)


def _try_tmpfile(work_fd: int) -> None:
    os.close(os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=work_fd))


def look(fd: int) -> LookFeatures:
    """What a directory shows of its file system; `fd` is open for reading."""
    return LookFeatures(
        d_type=_fills_d_type(fd),
        trusted_xattr=_has_xattrs(fd, marks.TRUSTED),
        user_xattr=_has_xattrs(fd, marks.USER),
    )


def _has_xattrs(fd: int, prefix: bytes) -> bool:
    try:
        os.getxattr(fd, prefix + marks.OPAQUE)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def _fills_d_type(fd: int) -> bool:
    """Whether a listing tells the kinds of its entries: `.` is one, in an empty directory too."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fdopendir.restype = libc.readdir.restype = ctypes.c_void_p
    stream = libc.fdopendir(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))
    if not stream:
        return False
    try:
        entry = libc.readdir(ctypes.c_void_p(stream))
        return bool(entry) and ctypes.string_at(entry + _D_TYPE_OFFSET, 1)[0] != _DT_UNKNOWN
    finally:
        libc.closedir(ctypes.c_void_p(stream))
