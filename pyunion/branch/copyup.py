"""Building a faithful copy of a lower object in the work directory; one rename then puts it into upper.

Owns what a copy consists of: data (shared, or copied with its holes), owner, mode, xattrs, flags, times. Nothing here
decides when or where to copy; stage_file is made to run in a worker thread and touches no shared state.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOSYS, ENOTSUP, EOPNOTSUPP, EPERM, EXDEV
from functools import partial
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IMODE, S_ISGID, S_ISUID
from typing import NamedTuple

from pyunion.branch import fileattr, objects, ordering, syscalls
from pyunion.union import marks

_CHUNK = 1 << 30
_BUFFER = 1 << 20
_PUNCH_HOLE = 3  # with FALLOC_FL_KEEP_SIZE
_CANNOT_SHARE = (EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, ENOTSUP, EPERM)
_STAGE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Terms(NamedTuple):
    """What holds for all copies of a mount."""

    xattr_prefix: bytes | None = marks.TRUSTED  # of the marks, which are not copied
    sync: bool = True  # the data are on disk before the copy appears
    ordered: bool = False  # where it is enough that they are written, see ordering.py
    shares: bool = True  # files of the copies' file system can share blocks, as far as we know
    overflow_uid: int | None = None  # ids that stand for those which our user namespace does not have
    overflow_gid: int | None = None
    must_chown: bool = True  # False where we are not root, and copies may belong to us

    def owner(self, st: os.stat_result) -> tuple[int, int]:
        """The ids that a copy gets; -1 for one that cannot be given."""
        return (
            -1 if st.st_uid == self.overflow_uid else st.st_uid,
            -1 if st.st_gid == self.overflow_gid else st.st_gid,
        )

    def mode(self, st: os.stat_result, kept: bool) -> int:
        """Setuid and setgid would say something else with another owner."""
        return S_IMODE(st.st_mode) if kept else S_IMODE(st.st_mode) & ~(S_ISUID | S_ISGID)


Xattrs = tuple[tuple[bytes, bytes], ...]


class Source(NamedTuple):
    """An open regular file to be copied. A metadata-only copy has its data in another file."""

    fd: int
    data_fd: int
    st: os.stat_result
    flags: int = 0  # as chattr(1) sets them
    xattrs: Xattrs | None = None  # None where nobody has read them yet


class Look(NamedTuple):
    """What makes up a copy of anything but a regular file, apart from its flags."""

    st: os.stat_result
    target: bytes  # of a symlink
    xattrs: Xattrs


def look(fd: int, name: bytes, terms: Terms, st: os.stat_result | None = None) -> Look:
    """Read it from the object, but for attributes that the caller knows already."""
    st = st or objects.stat(fd, name)
    target = objects.readlink(fd, name) if S_IFMT(st.st_mode) == S_IFLNK else b""
    keys = [key for key in objects.list_xattr(fd, name) if not _stays_behind(key, terms)]
    return Look(st, target, tuple((key, objects.get_xattr(fd, name, key)) for key in keys))


def stage_file(work_fd: int, name: bytes, source: Source, size: int, terms: Terms) -> None:
    """Make `name` in the work directory a copy of a regular file, with its first `size` bytes only. Where these are not
    all, it is a changed file from the start: of this moment.

    The data are on disk before this returns, so that a rename can never put a short file in place. Shared blocks are
    there already, and that they are shared is written before the rename, as with overlayfs.
    On failure nothing is left behind. Raises OSError.
    """
    with _staging(work_fd, name) as fd:
        shared = copy_data(source.data_fd, fd, size, terms.shares)
        _dress_file(fd, source, terms)
        if size < source.st.st_size:
            os.utime(fd, ns=(source.st.st_atime_ns, time.time_ns()))
        if terms.sync and size and not shared:
            ordering.write_out(fd, terms.ordered)


def stage_data(work_fd: int, name: bytes, source_fd: int, size: int) -> None:
    """Make `name` in the work directory a file of the first `size` bytes, and no copy of anything else. On failure
    nothing is left behind."""
    with _staging(work_fd, name) as fd:
        copy_data(source_fd, fd, size, may_share=False)


def stage_shared(work_fd: int, name: bytes, source: Source, terms: Terms) -> bool:
    """As stage_file() with all the data, if they can be shared, which takes no longer with more of them; else nothing
    is made, and False."""
    try:
        with _staging(work_fd, name) as fd:
            _share(source.data_fd, fd, source.st.st_size)
            _dress_file(fd, source, terms)
    except OSError:
        return False  # stage_file() says what is really wrong
    return True


@contextmanager
def _staging(work_fd: int, name: bytes) -> Iterator[int]:
    """A new file in the work directory, open for writing; it goes if what is done with it fails."""
    fd = os.open(name, _STAGE, 0o600, dir_fd=work_fd)
    try:
        yield fd
    except BaseException:
        os.unlink(name, dir_fd=work_fd)
        raise
    finally:
        os.close(fd)


def stage_metadata(work_fd: int, name: bytes, source: Source, terms: Terms) -> None:
    """Make `name` in the work directory a metadata-only copy: all holes, its data still in the layer below."""
    with _staging(work_fd, name) as fd:
        os.ftruncate(fd, source.st.st_size)
        assert terms.xattr_prefix is not None
        os.setxattr(fd, terms.xattr_prefix + marks.METACOPY, b"")
        _dress_file(fd, source, terms)


def empty_again(fd: int, size: int) -> None:
    """Take from a metadata-only copy what it has got of its data, where the file system can: nobody reads them, and the
    disk may be full."""
    with suppress(OSError):
        syscalls.fallocate(fd, _PUNCH_HOLE, 0, size)


def stage_other(
    work_fd: int, name: bytes, src_fd: int, src_name: bytes, st: os.stat_result, terms: Terms, flags: int = 0
) -> None:
    """As stage_look(), from the object itself; but with these attributes."""
    stage_look(work_fd, name, look(src_fd, src_name, terms, st), terms, flags)


def stage_look(work_fd: int, name: bytes, source: Look, terms: Terms, flags: int = 0) -> None:
    """Make `name` in the work directory a copy of a directory (without its entries), symlink, device, fifo or
    socket; only a directory has `flags`. Special files are never opened. On failure nothing is left behind."""
    form = S_IFMT(source.st.st_mode)
    if form == S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=work_fd)
    elif form == S_IFLNK:
        os.symlink(source.target, name, dir_fd=work_fd)
    else:
        os.mknod(name, form | 0o600, source.st.st_rdev, dir_fd=work_fd)
    try:
        _dress(work_fd, name, source, terms)
        if flags:
            _copy_flags(work_fd, name, flags, terms)
    except BaseException:
        if form == S_IFDIR:
            os.rmdir(name, dir_fd=work_fd)
        else:
            os.unlink(name, dir_fd=work_fd)
        raise


def dress(fd: int, name: bytes, src_fd: int, src_name: bytes, st: os.stat_result, terms: Terms) -> None:
    """Give an object that is there the owner, mode, xattrs and times of another one, in an order in which none of them
    undoes another. Raises OSError."""
    _dress(fd, name, look(src_fd, src_name, terms, st), terms)


def _dress(fd: int, name: bytes, source: Look, terms: Terms) -> None:
    st = source.st
    kept = _give_owner(partial(os.chown, name, dir_fd=fd, follow_symlinks=False), st, terms)
    if S_IFMT(st.st_mode) != S_IFLNK:
        syscalls.chmod_nofollow(fd, name, terms.mode(st, kept))
    for key, value in source.xattrs:
        _set_xattr(objects.path(fd, name), key, value, terms, follow_symlinks=False)
    objects.utime(fd, name, st.st_atime_ns, st.st_mtime_ns)


def _copy_flags(work_fd: int, name: bytes, flags: int, terms: Terms) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_fd)
    try:
        fileattr.copy(flags, fd, terms.xattr_prefix)
    finally:
        os.close(fd)


def _give_owner(chown: Callable[[int, int], None], st: os.stat_result, terms: Terms) -> bool:
    """Give a copy its owner, as far as we can and must; whether it has it."""
    owner = terms.owner(st)
    try:
        chown(*owner)
    except PermissionError:
        if terms.must_chown:
            raise
        return False
    return owner == (st.st_uid, st.st_gid)


def _stays_behind(key: bytes, terms: Terms) -> bool:
    return terms.xattr_prefix is not None and marks.is_mark(key, terms.xattr_prefix)


def _dress_file(fd: int, source: Source, terms: Terms) -> None:
    """Owner before mode, as chown clears setuid; xattrs after both, as file capabilities go with a chown;
    times last."""
    st = source.st
    kept = _give_owner(partial(os.fchown, fd), st, terms)
    os.fchmod(fd, terms.mode(st, kept))
    for key, value in read_xattrs(source.fd) if source.xattrs is None else source.xattrs:
        if not _stays_behind(key, terms):
            _set_xattr(fd, key, value, terms)
    if source.flags:
        fileattr.copy(source.flags, fd, terms.xattr_prefix)
    os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))


def read_xattrs(fd: int) -> Xattrs:
    """All that an open file has."""
    try:
        keys = [os.fsencode(key) for key in os.listxattr(fd)]
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
        return ()
    return tuple((key, os.getxattr(fd, key)) for key in keys)


def _set_xattr(target: int | bytes, key: bytes, value: bytes, terms: Terms, follow_symlinks: bool = True) -> None:
    """Only what protects a file (ACLs, security.*) must come along to a file system that has no such xattrs."""
    try:
        os.setxattr(target, key, value, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno == EPERM and not terms.must_chown and key.startswith((b"trusted.", b"security.")):
            return  # what only root may set, for a copy that is ours
        if error.errno != ENOTSUP or key.startswith((b"system.posix_acl", b"security.")):
            raise


def copy_data(src_fd: int, dst_fd: int, size: int, may_share: bool) -> bool:
    """Copy the first `size` bytes into a file that holds no data yet: shared blocks where the file system can, else the
    data between the holes, so that sparse stays sparse. Whether they are shared."""
    if may_share and size:
        with suppress(OSError):  # copying says what is really wrong
            _share(src_fd, dst_fd, size)
            return True
    reached = 0
    for start, end in objects.data_extents(src_fd, size):
        reached = _copy_range(src_fd, dst_fd, start, end)
    if reached < size:
        os.ftruncate(dst_fd, size)  # there is a hole at the end
    return False


def _share(src_fd: int, dst_fd: int, size: int) -> None:
    """Let an empty file have the blocks of another one, if that has no more than `size` bytes. Raises OSError: it has
    more, or is on another file system, or that shares no blocks."""
    if size < os.fstat(src_fd).st_size:
        raise OSError(EINVAL, os.strerror(EINVAL))
    syscalls.reflink(src_fd, dst_fd)


def _copy_range(src_fd: int, dst_fd: int, offset: int, end: int) -> int:
    """Returns how far it has come: a lower file may be cut short meanwhile."""
    while offset < end:
        try:
            copied = os.copy_file_range(src_fd, dst_fd, min(end - offset, _CHUNK), offset, offset)
        except OSError as error:
            if error.errno not in _CANNOT_SHARE:
                raise
            copied = 0
        if copied == 0:
            return _copy_by_hand(src_fd, dst_fd, offset, end)
        offset += copied
    return offset


def _copy_by_hand(src_fd: int, dst_fd: int, offset: int, end: int) -> int:
    while offset < end:
        data = os.pread(src_fd, min(end - offset, _BUFFER), offset)
        if not data:
            break
        view = memoryview(data)
        while view:
            written = os.pwrite(dst_fd, view, offset)
            view = view[written:]
            offset += written
    return offset
