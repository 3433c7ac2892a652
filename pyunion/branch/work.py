"""The work directory: where objects are prepared, so that one rename puts them into upper whole.

Owns the names in WORK/work, the shared whiteout, and the atomic replacements of upper entries. Everything in it is
ours to delete; it is emptied at each start. Knows no nodes and no requests.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EEXIST, EINVAL, EMLINK, ENODATA, ENOSYS, ENOTEMPTY, ENOTSUP
from stat import S_IFCHR, S_IFREG, S_IRWXU, S_ISDIR, S_ISGID, S_ISREG

from pyunion.branch import copyup, marks, objects, syscalls
from pyunion.branch.dirs import Dir
from pyunion.union.merge import Kind, kind_of

log = logging.getLogger(__name__)

_ACL_DEFAULT = b"system.posix_acl_default"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Work:
    """WORK/work, open for the life of the mount."""

    def __init__(self, fd: int, terms: copyup.Terms, *, device_whiteouts: bool = True) -> None:
        self.fd = fd
        self.terms = terms
        self.xattr_prefix = terms.xattr_prefix
        self._device_whiteouts = device_whiteouts
        self._count = 0
        self._whiteout: bytes | None = None

    def temp_name(self) -> bytes:
        self._count += 1
        return b"#%x" % self._count

    def stage(self, source: copyup.Look, flags: int = 0) -> bytes:
        """Prepare a copy of anything but a regular file; returns its name in the work directory."""
        name = self.temp_name()
        copyup.stage_look(self.fd, name, source, self.terms, flags)
        return name

    def put(self, name: bytes, into: Dir, at: bytes) -> None:
        """Rename a prepared object into upper, where nothing is at that name or something that it replaces."""
        os.rename(name, at, src_dir_fd=self.fd, dst_dir_fd=into.fd())

    def discard(self, name: bytes) -> None:
        """Remove what is not needed any more. The next mount tries again, so a failure fails no request."""
        with _left_over(name):
            remove_tree(self.fd, name)

    def _or_discard(self, name: bytes, step: Callable[..., None], *arguments: object) -> None:
        """Make the step that needs `name`, which nobody does any more if it fails."""
        try:
            step(*arguments)
        except OSError:
            self.discard(name)
            raise

    def exchange(self, fd: int, name: bytes, other_fd: int, other: bytes) -> None:
        """Let two objects in upper or the work directory change places, the second of which is what a change replaces.

        Where the file system cannot in one step (renameat2(2)) it takes three; if the daemon dies between them, what
        is in the layers below the second may show.
        """
        try:
            syscalls.renameat2(fd, name, other_fd, other, syscalls.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in (EINVAL, ENOSYS):
                raise
            self._exchange_in_steps(fd, name, other_fd, other)

    def _exchange_in_steps(self, fd: int, name: bytes, other_fd: int, other: bytes) -> None:
        aside = self.temp_name()
        with ExitStack() as undo:
            for from_fd, old, to_fd, new in (
                (other_fd, other, self.fd, aside),
                (fd, name, other_fd, other),
                (self.fd, aside, fd, name),
            ):
                os.rename(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd)
                undo.callback(os.rename, new, old, src_dir_fd=to_fd, dst_dir_fd=from_fd)
            undo.pop_all()

    # -- whiteouts ----------------------------------------------------------------------------------------------

    def whiteout(self, into: Dir, at: bytes) -> None:
        """Make a whiteout where upper has no entry: one link(2), as all whiteouts can be one inode."""
        self.announce_whiteout(into)
        if self._whiteout is not None:
            try:
                os.link(self._whiteout, at, src_dir_fd=self.fd, dst_dir_fd=into.fd(), follow_symlinks=False)
                return
            except OSError as error:
                if error.errno == EEXIST:
                    raise
                self._whiteout = None  # EMLINK: begin another one
        name = self._new_whiteout()
        try:
            os.link(name, at, src_dir_fd=self.fd, dst_dir_fd=into.fd(), follow_symlinks=False)
        except OSError as error:
            if error.errno == EEXIST:
                self.discard(name)
                raise
            self._or_discard(name, self.put, name, into, at)  # an upper without hard links
        else:
            self._whiteout = name

    def whiteout_over(self, into: Dir, at: bytes, is_dir: bool) -> None:
        """Replace an upper entry by a whiteout in one step. A directory must hold nothing but whiteouts."""
        self.announce_whiteout(into)
        name = self._link_or_new_whiteout()
        if not is_dir:
            self._or_discard(name, self.put, name, into, at)
            return
        self._or_discard(name, self.exchange, self.fd, name, into.fd(), at)
        self._remove_emptied(name)

    def _link_or_new_whiteout(self) -> bytes:
        if self._whiteout is not None:
            name = self.temp_name()
            try:
                os.link(self._whiteout, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
                return name
            except OSError as error:
                if error.errno != EMLINK:
                    raise
                self._whiteout = None
        return self._new_whiteout()

    def _new_whiteout(self) -> bytes:
        name = self.temp_name()
        if self._device_whiteouts:
            os.mknod(name, S_IFCHR, 0, dir_fd=self.fd)
        else:
            os.mknod(name, S_IFREG, dir_fd=self.fd)
            self._or_discard(name, marks.set_whiteout, self.fd, name, self.xattr_prefix)
        return name

    def announce_whiteout(self, into: Dir) -> None:
        """Before a whiteout comes into a directory: in xattr form it counts only where the directory says so."""
        if not self._device_whiteouts and not into.xwhiteouts:
            marks.set_xwhiteouts(into)

    # -- new objects in the place of a whiteout ---------------------------------------------------------------

    def nursery(self, parent: Dir) -> tuple[int, bytes | None]:
        """A directory in which a new object gets what it would inherit in `parent`: (descriptor, name).

        The work directory itself (name None) unless `parent` hands down its group or a default ACL. End it with
        close_nursery().
        """
        parent_fd = parent.fd()
        st = os.fstat(parent_fd)
        acl = objects.get_mark(parent_fd, b".", _ACL_DEFAULT)
        if acl is None and not st.st_mode & S_ISGID:
            return self.fd, None
        name = self.temp_name()
        os.mkdir(name, 0o700, dir_fd=self.fd)
        fd = -1
        try:
            fd = os.open(name, _DIR, dir_fd=self.fd)
            os.fchown(fd, -1, st.st_gid)
            os.fchmod(fd, 0o700 | st.st_mode & S_ISGID)
            self._hand_down(acl, fd)
        except OSError:
            if fd >= 0:
                os.close(fd)
            self.discard(name)
            raise
        return fd, name

    def _hand_down(self, acl: bytes | None, fd: int) -> None:
        """Give a nursery a default ACL, or none."""
        try:
            if acl is not None:
                os.setxattr(fd, _ACL_DEFAULT, acl)
            elif objects.get_mark(self.fd, b".", _ACL_DEFAULT) is not None:
                os.removexattr(fd, _ACL_DEFAULT)
        except OSError as error:
            if error.errno not in (ENOTSUP, ENODATA):
                raise

    def close_nursery(self, fd: int, name: bytes | None) -> None:
        if name is not None:
            os.close(fd)
            self.discard(name)

    def replace_whiteout(self, fd: int, name: bytes, into: Dir, at: bytes, is_dir: bool) -> None:
        """Put a new object, prepared in a nursery, in the place of the whiteout `at`, in one step."""
        if is_dir:
            self.exchange(fd, name, into.fd(), at)
            with _left_over(name):
                os.unlink(name, dir_fd=fd)
        else:
            os.rename(name, at, src_dir_fd=fd, dst_dir_fd=into.fd())

    # -- removing directories ---------------------------------------------------------------------------------

    def take_out(self, directory: Dir, at: bytes) -> None:
        """Remove a directory of upper that holds nothing but whiteouts, by way of the work directory."""
        name = self.temp_name()
        os.rename(at, name, src_dir_fd=directory.fd(), dst_dir_fd=self.fd)
        self._remove_emptied(name)

    def _remove_emptied(self, name: bytes) -> None:
        """Remove a directory that was moved here and holds nothing but whiteouts."""
        with _left_over(name):
            fd = os.open(name, _DIR, dir_fd=self.fd)
            try:
                self._clear_whiteouts(fd)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=self.fd)

    def clear_whiteouts(self, directory: Dir) -> None:
        """Unlink the whiteouts in a directory of upper and nothing else."""
        fd = os.open(b".", _DIR, dir_fd=directory.fd())
        try:
            self._clear_whiteouts(fd)
        finally:
            os.close(fd)

    def _clear_whiteouts(self, fd: int) -> None:
        with os.scandir(fd) as listing:
            names = [os.fsencode(entry.name) for entry in listing]
        for name in names:
            if self._is_whiteout(fd, name):
                os.unlink(name, dir_fd=fd)

    def _is_whiteout(self, fd: int, name: bytes) -> bool:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if kind_of(st.st_mode, st.st_rdev) is Kind.WHITEOUT:
            return True
        return S_ISREG(st.st_mode) and st.st_size == 0 and objects.has_xwhiteout(fd, name, self.xattr_prefix)


@contextmanager
def _left_over(name: bytes) -> Iterator[None]:
    """For the removal of something in the work directory when the change itself was made."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%r is left in the work directory until the next mount: %s", name, error.strerror)


def remove_tree(dirfd: int, name: bytes) -> None:
    """Remove whatever is at a name of ours, however deep it is: directories in it come up to the top before they go, so
    this needs neither recursion nor many descriptors. Raises OSError."""
    st = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    if not S_ISDIR(st.st_mode):
        os.unlink(name, dir_fd=dirfd)
        return
    _let_in(dirfd, name, st)
    top = os.open(name, _DIR, dir_fd=dirfd)
    try:
        left = _remove_entries(top)
        taken = frozenset(left)
        free = (b"%x" % number for number in itertools.count() if b"%x" % number not in taken)
        while left:
            at = left.pop()
            fd = os.open(at, _DIR, dir_fd=top)
            try:
                for directory, new in zip(_remove_entries(fd), free, strict=False):
                    os.rename(directory, new, src_dir_fd=fd, dst_dir_fd=top)
                    left.append(new)
            finally:
                os.close(fd)
            os.rmdir(at, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dirfd)


def _remove_entries(fd: int) -> list[bytes]:
    """Remove what a directory holds; the directories in it that are not empty stay."""
    left = []
    for entry in map(os.fsencode, os.listdir(fd)):
        st = os.stat(entry, dir_fd=fd, follow_symlinks=False)
        if not S_ISDIR(st.st_mode):
            os.unlink(entry, dir_fd=fd)
            continue
        try:
            os.rmdir(entry, dir_fd=fd)
        except OSError as error:
            if error.errno not in (ENOTEMPTY, EEXIST):
                raise
            _let_in(fd, entry, st)
            left.append(entry)
    return left


def _let_in(dirfd: int, name: bytes, st: os.stat_result) -> None:
    """Open a directory to ourselves that its mode closes, as users' directories may be."""
    if st.st_mode & S_IRWXU != S_IRWXU:
        with suppress(PermissionError):  # who is not its owner may be allowed to without
            syscalls.chmod_nofollow(dirfd, name, S_IRWXU)
