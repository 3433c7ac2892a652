"""copy_up: bringing a node's object into the writable branch before it is changed.

Owns when copies are made, the lock that makes it once, and the step that puts a copy in place: that step is
synchronous, so that no other request sees half of it. What a copy consists of is pyunion/branch/copyup.py; the copies
of lower files with several names go to pyunion/fs/links.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENOENT, EROFS
from functools import partial
from stat import S_ISREG

from pyunion.branch import copyup, fileattr, objects, ordering
from pyunion.branch import marks as branch_marks
from pyunion.branch.dirs import Branch, Dir
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.branch.remote import Remote, close
from pyunion.branch.work import Work
from pyunion.fs.interruption import Left
from pyunion.fs.links import Links
from pyunion.fs.locks import KeyedLock
from pyunion.fs.nodes import CAPABILITIES, Directory, File, Node, Place, Table
from pyunion.fs.progress import Progress, filled, reached
from pyunion.fs.waiting import LITTLE, OnDisk, in_order, in_thread, open_by

log = logging.getLogger(__name__)

First = Callable[[int, bytes], object]  # gets a copy, by the directory's descriptor and the name


class Copier:
    """Brings nodes into upper. Without a work directory every change is EROFS."""

    def __init__(
        self,
        table: Table,
        upper: Branch | None,
        work: Work | None,
        origins: Origins | None,
        index: Index | None,
        metacopy: bool,
    ) -> None:
        self.table = table
        self.upper = upper
        self._work = work
        self.origins = origins
        self.metacopy = metacopy
        self.locks = KeyedLock()
        self.progress = Progress()
        self._on_disk = OnDisk()
        self._filling: dict[int, tuple[int, int]] = {}  # metadata-only copies that are, with the times that they keep
        self.links = Links(index, self.directory)

    @property
    def work(self) -> Work:
        """The work directory; raises EROFS in a read-only union."""
        if self._work is None:
            raise OSError(EROFS, os.strerror(EROFS))
        return self._work

    @property
    def is_read_only(self) -> bool:
        """Whether nothing is ever copied."""
        return self._work is None

    # -- directories: small, so at once -----------------------------------------------------------------------

    def directory(self, node: Directory) -> Dir:
        """The directory's part in upper, made with all its missing parents if need be. A number of a descriptor from
        before is not good any more: there may be more parents than descriptors."""
        top = node.layers[0]
        if top.branch.is_upper:
            return top
        work = self.work
        missing: list[Directory] = []
        above: Directory | None = node
        while above is not None and not above.in_upper:
            if above.dead:
                raise OSError(ENOENT, os.strerror(ENOENT), above.name)
            missing.append(above)
            above = above.parent
        for directory in reversed(missing):
            self._copy_directory(work, directory)
            top.branch.cache.trim()
        return node.layers[0]

    def _copy_directory(self, work: Work, node: Directory) -> None:
        assert node.parent is not None
        into = node.parent.layers[0]
        lower = node.layers[0]
        flags = lower.ask(fileattr.read_directory)
        origin = None if self.origins is None else self.origins.of(lower, b"")
        name = work.stage(lower.ask(copyup.look, b".", work.terms), flags)
        with _discarded_on_failure(work, name):
            self._mark_origin(work, name, origin)
            self._put(work, name, into, node.name, origin)
        node.layers = (into.child(node.name), *node.layers)
        node.copied = bool(origin)
        node.protection = fileattr.kept(flags, work.xattr_prefix)
        self.progress.done["directory"] += 1

    def _put(self, work: Work, staged: bytes, into: Dir, name: bytes, origin: bytes | None) -> None:
        """Rename a copy into place. It was there already as far as users can see: the directory's times stay."""
        with objects.keeping_times(into.fd()):
            if origin is not None:
                branch_marks.set_impure(into)
            work.put(staged, into, name)

    def _mark_origin(self, work: Work, staged: bytes, origin: bytes | None) -> None:
        if origin is not None and work.xattr_prefix is not None:
            branch_marks.set_origin(work.fd, staged, work.xattr_prefix, origin)

    # -- everything else --------------------------------------------------------------------------------------

    async def data(self, file: File, size: int | None = None, first: First | None = None) -> bool:
        """Bring the whole file into upper; with `size`, only its first bytes if that can be, as the rest is about to
        go. Whether that has cut it to this size; if not, or if it fails, the file is as long as it was. `first` is done
        with a new copy before it counts."""
        if file.in_upper and file.data is None:
            return False
        work = self.work
        async with self.locks.hold(file.ino):
            if not file.in_upper:
                return await self._copy(work, file, size, first)
            if file.data is not None and size is not None and self._is_better_replaced(file, size):
                return await self._copy(work, file, size, first)
            if file.data is not None:
                await self._complete(work, file)
            return False

    async def metadata(self, file: File) -> None:
        """Bring into upper what a change of owner, mode, times or xattrs needs."""
        if file.in_upper:
            return
        if not self.metacopy or self.work.xattr_prefix is None:
            await self.data(file)
            return
        async with self.locks.hold(file.ino):
            if not file.in_upper:
                await self._copy(self.work, file, None, metadata_only=True)

    def times_were_set(self, file: File, atime_ns: int | None, mtime_ns: int | None) -> None:
        """To be told of all times that are: a metadata-only copy which is getting its data keeps them."""
        kept = self._filling.get(file.ino)
        if kept is not None:
            self._filling[file.ino] = (
                kept[0] if atime_ns is None else atime_ns,
                kept[1] if mtime_ns is None else mtime_ns,
            )

    async def _copy(
        self, work: Work, file: File, size: int | None, first: First | None = None, metadata_only: bool = False
    ) -> bool:
        st = file.ask(objects.stat)
        remote = file.remote or file.dir.branch.remote
        origin = self._origin_of(file, st)
        wanted = _wanted(file, st, size, remote)
        data = None
        protection = 0
        incapable = False
        kind = "file"
        if not S_ISREG(st.st_mode):
            staged = work.stage(file.ask(copyup.look, work.terms))
            kind = "other"
        else:
            if remote is not None:
                self._ask_ahead(file)
            staged = work.temp_name()
            with ExitStack() as stack:
                source = await _open_source(file, st, stack)
                # no name may be left behind with the data: several are found by the index, as in _publish
                one = bool(origin) if st.st_nlink > 1 else not file.aliases and not file.dead
                protection = fileattr.kept(source.flags, work.xattr_prefix)
                incapable = CAPABILITIES not in dict(source.xattrs or ())
                if metadata_only and one and st.st_size:
                    copyup.stage_metadata(work.fd, staged, source, work.terms)
                    data = file.data or (file.dir, file.real)
                    kind = "metadata"
                else:
                    await self._stage_data(work, file, staged, source, wanted, stack)
        with _discarded_on_failure(work, staged), ExitStack() as stack:
            if wanted < _wanted(file, st, size, remote):  # somebody has opened it meanwhile
                work.discard(staged)
                return await self._copy(work, file, None, first)
            self._mark_origin(work, staged, origin)
            if first is not None:
                first(work.fd, staged)
            if data is None and remote is not None:
                await _swap_in_order(file, (work.fd, staged), remote)
            # a metadata-only copy has nothing to read
            swapped = [] if data is not None or remote is not None else _open_again(file, (work.fd, staged), stack)
            self._publish(work, file, staged, st, origin)
            _swap_descriptors(swapped)
        file.data = data
        file.protection = protection
        file.incapable = incapable
        file.settled = False
        self.progress.done[kind] += 1
        return wanted < st.st_size

    @staticmethod
    def _is_better_replaced(file: File, size: int) -> bool:
        """Whether a metadata-only copy in upper makes way for another copy, which is shorter from the start: it has one
        name, and no mark says more than a copy of it would."""
        if file.dead or file.aliases or file.index or file.protection:
            return False
        st = file.stat()
        return st.st_nlink == 1 and size < st.st_size

    def _ask_ahead(self, file: File) -> None:
        """Before the data are copied: what putting the copy in place has to know, as it would be copied again."""
        if not file.dead:
            for parent in (file.parent, *(parent for parent, _ in file.aliases or ())):
                assert parent is not None
                self.directory(parent)

    def _origin_of(self, file: File, st: os.stat_result) -> bytes | None:
        """The origin to store; none for one of several links that part company by their copies."""
        if self.origins is None or (st.st_nlink > 1 and not self.links.kept) or file.dead:
            return None
        if file.in_upper:
            return branch_marks.origin_of(*file.address(), file.dir.branch)
        return self.origins.of(file.dir, file.real)

    async def _stage_data(
        self, work: Work, file: File, staged: bytes, source: copyup.Source, wanted: int, stack: ExitStack
    ) -> None:
        """`stack` closes the source; not before the thread has ended, which may be later than this."""
        remote = file.remote or file.dir.branch.remote
        # What is little is copied at once anyway, and then shared if it can be.
        may_share = work.terms.shares and remote is None and wanted == source.st.st_size and wanted > LITTLE
        if may_share and await self._on_disk.call(0, copyup.stage_shared, work.fd, staged, source, work.terms):
            return
        stage = partial(copyup.stage_file, work.fd, staged, source, wanted, work.terms)
        if not wanted and remote is None:
            stage()
            return
        with self.progress.copying(file.path, wanted, partial(reached, work.fd, staged)):
            try:
                await self._on_disk.call(wanted, stage, of=remote)
            except Left as left:
                left.afterwards(partial(_drop_copy, stack.pop_all(), work, staged))
                raise

    def _publish(
        self, work: Work, file: File, staged: bytes, st: os.stat_result, origin: bytes | None
    ) -> None:
        """Put a finished copy where the file is now: it may have been moved or unlinked while it was made."""
        if file.dead:
            file.let_go()
            file.pin = os.open(staged, objects.PIN, dir_fd=work.fd)
            os.unlink(staged, dir_fd=work.fd)
            assert self.upper is not None
            file.dir, file.real = self.upper.root, b""
            file.hidden_links = 0
        elif origin and st.st_nlink > 1:
            self.links.put(work.fd, file, staged, st.st_nlink, origin)
        else:
            self._put_names(work, file, staged, origin)
            file.hidden_links = 0
        file.copied = bool(origin)
        self.table.forget_key(file)
        if st.st_nlink > 1 or file.aliases:
            self.table.add_link(file, file.stat())

    def _put_names(self, work: Work, file: File, staged: bytes, origin: bytes | None) -> None:
        """All names of a lower file that are known become links of the copy, the one that is changed at last."""
        assert file.parent is not None
        into = self.directory(file.parent)
        with ExitStack() as undo:
            for parent, name in file.aliases or ():
                other = self.directory(parent)
                with objects.keeping_times(other.fd()):
                    os.link(staged, name, src_dir_fd=work.fd, dst_dir_fd=other.fd(), follow_symlinks=False)
                undo.callback(_unlink, other, name)
            self._put(work, staged, into, file.name, origin)
            undo.pop_all()
        file.dir, file.real = into, file.name

    def comes_into(self, node: Node, into: Dir) -> None:
        """Before an object gets a name in another directory of upper."""
        if node.copied and into.branch.xattr_prefix is not None:
            branch_marks.set_impure(into)

    async def _complete(self, work: Work, file: File) -> None:
        """Give a metadata-only copy its data, and all of them, as they are there before the mark goes: until then the
        file below counts."""
        assert file.data is not None
        remote = file.remote
        with ExitStack() as stack:
            target = objects.open_file(*file.address(), os.O_WRONLY)
            stack.callback(os.close, target)
            size = os.fstat(target).st_size
            staged = work.temp_name()
            measure = partial(filled, target) if remote is None else partial(reached, work.fd, staged)
            with self.progress.copying(file.path, size, measure):
                source = await _data_below(work, file.data, staged, size)
                stack.callback(os.close, source)
                await self._fill(work, file, source, target)
            if remote is not None:
                await _swap_in_order(file, file.address(), remote)
            swapped = [] if remote is not None else _open_again(file, file.address(), stack)
            with suppress(FileNotFoundError):
                branch_marks.clear_metacopy(*file.address(), file.dir.branch)
            file.data = None
            _swap_descriptors(swapped)
        self.progress.done["data"] += 1

    async def _fill(self, work: Work, file: File, source: int, target: int) -> None:
        """Copy the data into a metadata-only copy, which keeps its times. On failure it is as it was."""
        st = os.fstat(target)
        self._filling[file.ino] = st.st_atime_ns, st.st_mtime_ns
        try:
            shared = await in_thread(copyup.copy_data, source, target, st.st_size, work.terms.shares)
            os.utime(target, ns=self._filling[file.ino])
            if work.terms.sync and not shared:
                await in_thread(ordering.write_out, target, work.terms.ordered)
        except BaseException:
            if not file.swapped:  # in an attempt that did not come to its end: those descriptors read it
                copyup.empty_again(target, st.st_size)
            with suppress(OSError):
                os.utime(target, ns=self._filling[file.ino])
            raise
        finally:
            del self._filling[file.ino]


async def _data_below(work: Work, place: Place, staged: bytes, wanted: int) -> int:
    """A descriptor of the data of a metadata-only copy. Where they are on a branch that may not answer they are fetched
    into a file, which goes again: a thread that is left behind must not write to what others see."""
    directory, name = place
    remote = directory.branch.remote
    source = await open_by(directory, objects.open_file, name, os.O_RDONLY)
    if remote is None:
        return source
    with ExitStack() as stack:
        stack.callback(close, source, remote)
        try:
            await in_thread(copyup.stage_data, work.fd, staged, source, wanted, of=remote)
        except Left as left:
            left.afterwards(partial(_drop_copy, stack.pop_all(), work, staged))
            raise
    try:
        return os.open(staged, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work.fd)
    finally:
        work.discard(staged)


def _wanted(file: File, st: os.stat_result, size: int | None, remote: Remote | None) -> int:
    """How many bytes to copy. All of them where others have the file open on a branch that may not answer: they read
    the copy before it is in place, and go on to if it never gets there."""
    if size is None or (remote is not None and file.fds):
        return st.st_size
    return min(size, st.st_size)


def _drop_copy(stack: ExitStack, work: Work, staged: bytes, result: None) -> None:
    """What was made for somebody who has died meanwhile."""
    stack.close()
    work.discard(staged)


@contextmanager
def _discarded_on_failure(work: Work, staged: bytes) -> Iterator[None]:
    """Leave nothing in the work directory of a copy that could not be put in place."""
    try:
        yield
    except BaseException:
        work.discard(staged)
        raise


def _unlink(directory: Dir, name: bytes) -> None:
    os.unlink(name, dir_fd=directory.fd())


def _open_again(file: File, copy: tuple[int, bytes], stack: ExitStack) -> list[tuple[int, int]]:
    """Each descriptor that is open on the lower file, with one of the copy, opened before anything shows that there is
    a copy; `stack` closes them."""
    pairs = []
    for fd in file.fds or ():
        fresh = objects.open_file(*copy, os.O_RDONLY)
        stack.callback(os.close, fresh)
        pairs.append((fd, fresh))
    return pairs


def _swap_descriptors(pairs: list[tuple[int, int]]) -> None:
    """Descriptors that were opened on the lower file read the copy from now on: dup2(2) keeps their numbers, which the
    kernel holds as file handles, and lets a read that is under way end on the old file."""
    for fd, fresh in pairs:
        os.dup2(fresh, fd, inheritable=False)


async def _swap_in_order(file: File, copy: tuple[int, bytes], remote: Remote) -> None:
    """The same where dup2(2), which closes the lower file, may not come back. So it is done before the copy is put in
    place, which has the same data; nobody can write to it yet, or ever, if this ends before the copy is in place."""
    file.swapped = set()
    while (fd := next((fd for fd in file.fds or () if fd not in file.swapped), -1)) >= 0:
        file.swapped.add(fd)
        await in_order(remote, partial(_replace, objects.open_file(*copy, os.O_RDONLY), fd))


def _replace(fresh: int, fd: int) -> None:
    try:
        os.dup2(fresh, fd, inheritable=False)
    finally:
        os.close(fresh)


async def _open_source(file: File, st: os.stat_result, stack: ExitStack) -> copyup.Source:
    """Open a lower file for copying; `stack` closes it."""
    fd, flags, xattrs = await open_by(file.dir, _open_and_read, file.real)
    stack.callback(close, fd, file.dir.branch.remote)
    if file.data is None:
        return copyup.Source(fd, fd, st, flags, xattrs)
    directory, name = file.data
    data_fd = await open_by(directory, objects.open_file, name, os.O_RDONLY)
    stack.callback(close, data_fd, directory.branch.remote)
    return copyup.Source(fd, data_fd, st, flags, xattrs)


def _open_and_read(directory_fd: int, name: bytes) -> tuple[int, int, copyup.Xattrs]:
    """With its flags and xattrs, so that none of them is to be asked for again."""
    fd = objects.open_file(directory_fd, name, os.O_RDONLY)
    try:
        return fd, fileattr.read(fd), copyup.read_xattrs(fd)
    except OSError:
        os.close(fd)
        raise
