"""An upper branch becomes a layer of its own: a copy of it as it was at one moment, though it may be mounted.

Owns how the copy is brought to one moment. It goes over the branch again and again, and copies what has changed since,
until it finds nothing changed: then all of it is as it was when that last look began. Files share their blocks with
upper where the file system can. What a copy of one object is, is pyunion/branch/copyup.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from stat import S_IMODE, S_ISDIR, S_ISREG
from typing import NamedTuple

from pyunion.branch import copyup, objects, syscalls
from pyunion.branch.dirs import Branch, Dir
from pyunion.branch.work import remove_tree
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers.indexed import Name
from pyunion.layers.telling import Tell, nobody
from pyunion.layers.tree import Entry
from pyunion.union import marks

_MOST_LOOKS = 50
# Two changes within one tick of the kernel's clock may leave the same change time.
_TICK_NS = 20_000_000
# Marks for the mount that wrote them, and not for a layer: inode numbers, the index, and what chattr(1) has forbidden,
# which is read in upper only and has no place in an image.
_OF_THE_MOUNT = (marks.ORIGIN, marks.IMPURE, marks.NLINK, marks.PROTATTR, b"uuid")


class _Seen(NamedTuple):
    """What an object was like when it was copied."""

    st: tuple[int, ...]
    settled: bool  # its change time would tell of any later change
    parent: Dir | None = None  # of a directory: its part in the copy
    time: tuple[int, int] = (0, 0)
    mode: int | None = None  # that it gets at the end, if it has another one


class Snapshot:
    """The copy of an upper branch in an empty directory."""

    def __init__(
        self,
        upper: Branch,
        copy: Branch,
        mounted: Branch | None = None,
        tell: Tell = nobody,
        more: Callable[[], Iterable[Name]] = tuple,
    ) -> None:
        """`mounted` is the root of the union if it is mounted by FUSE: the kernel may have writes that are not in upper
        yet, and is asked for them file by file. `more` are names that the copy has to have, too."""
        self._upper = upper
        self._copy = copy
        self._mounted = mounted
        self._tell = tell
        self._more = more
        self._prefix = upper.prefix_to_read
        self._terms = copyup.Terms(None, sync=False, must_chown=os.geteuid() == 0)
        self._terms_below = self._terms._replace(xattr_prefix=self._prefix)  # marks of lower branches are not copied
        self._seen: dict[bytes, _Seen] = {}
        self._links: dict[int, tuple[Dir, bytes]] = {}
        self._changed = 0
        self._began_ns = 0  # the last look

    def take(self) -> None:
        """Raises PyunionError where the union is written without a pause, and OSError."""
        for _ in range(_MOST_LOOKS):
            self._changed = 0
            self._links = {}
            self._began_ns = time.time_ns()
            self._look()
            if not self._changed:
                self._finish()
                return
            time.sleep(_TICK_NS / 1e9)
        raise PyunionError(
            f"{os.fsdecode(self._upper.path)} is being written without a pause; stop what writes to it, or remount the "
            "union read-only",
            ExitCode.BUSY,
        )

    def _look(self) -> None:
        """Go over the whole branch once and copy what has changed since the last time."""
        present = {b""}
        self._directory(b"", self._upper.root, b".", self._copy.root)
        mounted = self._mounted.root if self._mounted is not None else None
        todo: list[tuple[bytes, Dir, Dir, Dir | None]] = [(b"", self._upper.root, self._copy.root, mounted)]
        while todo:
            path, source, target, seen_by = todo.pop()
            self._trim()
            with self._while_it_stays():
                for name in sorted(os.fsencode(name) for name in _list(source)):
                    below = os.path.join(path, name)
                    if self._object(below, source, name, (target, name), seen_by):
                        part = None if seen_by is None else seen_by.child(name)
                        todo.append((below, source.child(name), target.child(name), part))
                    present.add(below)
                    self._tell()
        for more in self._more():
            self._trim()
            with self._while_it_stays():
                self._add(more, present)
        for path in sorted(self._seen.keys() - present, reverse=True):
            self._forget(path)

    @contextmanager
    def _while_it_stays(self) -> Iterator[None]:
        """What has gone, or is something else by now, is looked at again the next time."""
        try:
            yield
        except OSError as error:
            if error.errno not in objects.GONE:
                raise
            self._changed += 1

    def _trim(self) -> None:
        for branch in (self._upper, self._copy, self._mounted):
            if branch is not None:
                branch.cache.trim()

    def _add(self, more: Name, present: set[bytes]) -> None:
        """A name that upper has not, and the directories that it is in, as copy_up would bring them there."""
        if more.path in present:
            return
        target, seen_by = self._copy.root, self._mounted.root if self._mounted is not None else None
        for path, entry in more.above:
            name = os.path.basename(path)
            target, seen_by = target.child(name), None if seen_by is None else seen_by.child(name)
            if path not in present:
                self._directory_below(path, entry, target)
                present.add(path)
        name = os.path.basename(more.path)
        if seen_by is not None:
            _flush(seen_by, name)
        self._object(more.path, more.entry.dir, more.entry.name, (target, name), None)
        present.add(more.path)
        self._tell()

    def _directory_below(self, path: bytes, entry: Entry, copy: Dir) -> None:
        st, known = entry.st, self._seen.get(path)
        if known is not None and known.st == _telling(st):
            return
        self._changed += 1
        if known is None:
            assert copy.parent is not None
            os.mkdir(copy.name, 0o700, dir_fd=copy.parent.fd())
        self._seen[path] = _Seen(_telling(st), True, copy, (st.st_atime_ns, st.st_mtime_ns))
        copyup.dress(copy.fd(), b".", entry.dir.fd(), entry.name, st, self._terms_below)
        self._let_fill(path, copy)

    def _object(self, path: bytes, source: Dir, name: bytes, at: tuple[Dir, bytes], seen_by: Dir | None) -> bool:
        """Bring one object up to date, `at` its place in the copy; whether it is a directory."""
        if seen_by is not None:
            _flush(seen_by, name)
        target, as_name = at
        st = source.stat(name)
        if st is None:
            self._changed += 1
            return False
        known = self._seen.get(path)
        if S_ISDIR(st.st_mode):
            if known is None or not S_ISDIR(known.st[0]):
                self._remove(target, as_name)
                os.mkdir(as_name, 0o700, dir_fd=target.fd())
            self._directory(path, source, name, target.child(as_name), st)
            return True
        if known is not None and known.settled and known.st == _telling(st):
            self._links[st.st_ino] = at
            return False
        self._changed += 1
        settled = self._settled(st)
        self._remove(target, as_name)
        other = self._links.get(st.st_ino)
        if other is not None:  # of what is in the index alone the count says 1
            os.link(other[1], as_name, src_dir_fd=other[0].fd(), dst_dir_fd=target.fd(), follow_symlinks=False)
        else:
            self._stage(source, name, at, st)
        self._links[st.st_ino] = at
        self._seen[path] = _Seen(_telling(st), settled)
        return False

    def _stage(self, source: Dir, name: bytes, at: tuple[Dir, bytes], st: os.stat_result) -> None:
        target, as_name = at
        if S_ISREG(st.st_mode):
            fd = objects.open_file(source.fd(), name, os.O_RDONLY)
            try:
                file = copyup.Source(fd, fd, os.fstat(fd))
                copyup.stage_file(target.fd(), as_name, file, file.st.st_size, self._terms)
            finally:
                os.close(fd)
        else:
            copyup.stage_other(target.fd(), as_name, source.fd(), name, st, self._terms)
        self._drop_marks(target.fd(), as_name)

    def _directory(self, path: bytes, source: Dir, name: bytes, copy: Dir, st: os.stat_result | None = None) -> None:
        """Owner, mode and xattrs of a directory; its times come last of all, and a user's modes."""
        st = os.fstat(source.fd()) if st is None else st
        known = self._seen.get(path)
        if known is not None and known.settled and known.st == _telling(st):
            return
        self._changed += 1
        self._seen[path] = _Seen(_telling(st), self._settled(st), copy, (st.st_atime_ns, st.st_mtime_ns))
        kept = objects.list_xattr(source.fd(), name)
        for key in objects.list_xattr(copy.fd(), b"."):
            if key not in kept:
                objects.remove_xattr(copy.fd(), b".", key)
        copyup.dress(copy.fd(), b".", source.fd(), name, st, self._terms)
        self._drop_marks(copy.fd(), b".")
        self._let_fill(path, copy)

    def _let_fill(self, path: bytes, copy: Dir) -> None:
        if not self._terms.must_chown:  # a user can fill a directory only while he may write to it
            mode = S_IMODE(os.stat(b".", dir_fd=copy.fd()).st_mode)
            syscalls.chmod_nofollow(copy.fd(), b".", mode | 0o700)
            self._seen[path] = self._seen[path]._replace(mode=mode)

    def _settled(self, st: os.stat_result) -> bool:
        """The same for all names of a file, which would part if only some of them were copied again."""
        return st.st_ctime_ns < self._began_ns - _TICK_NS

    def _drop_marks(self, fd: int, name: bytes) -> None:
        for key in objects.list_xattr(fd, name):
            if key.startswith(self._prefix) and key[len(self._prefix) :] in _OF_THE_MOUNT:
                objects.remove_xattr(fd, name, key)

    def _forget(self, path: bytes) -> None:
        self._changed += 1
        seen = self._seen.pop(path)
        parent = self._seen.get(os.path.dirname(path))
        if parent is not None and parent.parent is not None:
            if seen.parent is not None:
                seen.parent.close()
            self._remove(parent.parent, os.path.basename(path))

    def _remove(self, directory: Dir, name: bytes) -> None:
        with suppress(FileNotFoundError):
            remove_tree(directory.fd(), name)

    def _finish(self) -> None:
        for seen in reversed(self._seen.values()):
            if seen.parent is not None:
                if seen.mode is not None:
                    syscalls.chmod_nofollow(seen.parent.fd(), b".", seen.mode)
                objects.utime(seen.parent.fd(), b".", *seen.time)
                self._copy.cache.trim()


def _list(directory: Dir) -> list[str]:
    return os.listdir(f"/proc/self/fd/{directory.fd()}")


def _telling(st: os.stat_result) -> tuple[int, ...]:
    return (st.st_mode, st.st_ino, st.st_size, st.st_ctime_ns, st.st_mtime_ns, st.st_nlink)


def _flush(directory: Dir, name: bytes) -> None:
    """What the kernel has of a file goes to the daemon, and so to upper."""
    with suppress(OSError):  # no such name, or no file
        st = directory.stat(name)
        if st is not None and S_ISREG(st.st_mode):
            fd = objects.open_file(directory.fd(), name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
