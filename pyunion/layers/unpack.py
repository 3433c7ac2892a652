"""The members of an OCI layer become a branch: files as they are, `.wh.` names as overlayfs's marks.

Owns what an archive may do. Every member is reached by the descriptor of its directory and never through a symlink, so
that nothing outside of the branch can be met; what would lead out is refused. Parents that the archive does not name
get the attributes that they have in the layers below, and a link to a file of these takes the file along.
"""

from __future__ import annotations

import os
import tarfile
from errno import EPERM
from functools import partial
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IMODE, S_ISDIR, S_ISLNK, S_ISREG

from pyunion.branch import copyup, objects, syscalls
from pyunion.branch import marks as branch_marks
from pyunion.branch.dirs import Branch, Dir
from pyunion.branch.work import remove_tree
from pyunion.errors import PyunionError
from pyunion.layers import tarreader
from pyunion.layers.tarwriter import XATTR
from pyunion.layers.telling import Tell, told
from pyunion.layers.tree import Entry, Tree
from pyunion.union import marks
from pyunion.union.merge import Kind

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SKIPPED_XATTRS = (b"security.selinux",)  # the label is the machine's that made the image
_AUFS_OWN = b".wh..wh."
_MUCH = 1 << 20  # bytes of a file, for which there may be no space


class Unpacker:
    """Fills one empty branch."""

    def __init__(self, branch: Branch, below: Tree | None) -> None:
        """`below` are the layers under it; None for the lowest."""
        self._branch = branch
        self._below = below
        self._prefix = branch.prefix_to_read
        self._root = os.geteuid() == 0
        self._terms = copyup.Terms(self._prefix, sync=False, must_chown=self._root)
        self._chain: list[Dir] = []  # the directories on the way to the last member
        self._along: set[bytes] = set()  # paths of files of the layers below that came for the sake of a link
        self._opaque: set[bytes] = set()  # paths of directories
        self._last: dict[bytes, tuple[int, int]] = {}  # of directories: the modes and times that they get at the end

    def unpack(self, reader: tarreader.TarReader, tell: Tell) -> None:
        """Raises PyunionError and OSError."""
        for member in told(reader, tell):
            try:
                self._member(member, reader)
            except (OSError, ValueError, OverflowError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise PyunionError(f"cannot unpack {member.name}: {why}") from None
            self._branch.cache.trim()
        for path, (mode, mtime_ns) in sorted(self._last.items(), reverse=True):
            directory = self._find(path.split(b"/") if path else [])
            if directory is not None:
                if not self._root:
                    syscalls.chmod_nofollow(directory.fd(), b".", mode)
                objects.utime(directory.fd(), b".", mtime_ns, mtime_ns)
            self._branch.cache.trim()

    def _member(self, member: tarfile.TarInfo, reader: tarreader.TarReader) -> None:
        names = tarreader.parts(member.name, "the name")
        if not names:
            if member.isdir():
                self._dress(self._branch.root, b".", member)
                self._later(self._branch.root, [], tarreader.time_ns(member))
            return
        name = names.pop()
        if any(part.startswith(marks.AUFS_PREFIX) for part in names):
            if any(part.startswith(_AUFS_OWN) for part in names):
                return
            raise PyunionError(f"{member.name} lies below a mark; the archive is hostile")
        parent = self._parent(names, member.name)
        if name.startswith(marks.AUFS_PREFIX):
            self._mark(parent, names, name, member)
            return
        self._along.discard(b"/".join([*names, name]))
        hid = self._make_room(parent, name, member)
        if member.isdir():
            self._directory(parent, [*names, name], hid)
            directory = parent.child(name)
            self._dress(directory, b".", member)
            self._later(directory, [*names, name], tarreader.time_ns(member))
        elif member.islnk():
            self._hard_link(parent, name, member)
        else:
            self._create(parent, name, member, reader)
            self._dress(parent, name, member)

    # -- directories ----------------------------------------------------------------------------------------------

    def _parent(self, names: list[bytes], member: str) -> Dir:
        """The directory at a path, made if it is not there."""
        known = self._known(names)
        here = self._chain[-1] if self._chain else self._branch.root
        for position in range(known, len(names)):
            here = self._step(here, names[: position + 1], member)
            self._chain.append(here)
        return here

    def _step(self, here: Dir, names: list[bytes], member: str) -> Dir:
        name = names[-1]
        st = here.stat(name)
        kind = None if st is None else here.kind(name, st)
        if kind is Kind.OTHER:
            what = "symlink" if st is not None and S_ISLNK(st.st_mode) else "file"
            raise PyunionError(f"{member} leads through a {what} of the same archive; the archive is hostile")
        if kind is not Kind.DIRECTORY:
            if kind is Kind.WHITEOUT:
                os.unlink(name, dir_fd=here.fd())
            self._directory(here, names, kind is Kind.WHITEOUT)
            found = None if self._below is None else self._below.find(b"/".join(names))
            if found is not None and found.is_dir:
                copyup.dress(here.fd(), name, found.dir.fd(), found.name, found.st, self._terms)
                self._later(here.child(name), names, found.st.st_mtime_ns)
        return here.child(name)

    def _later(self, directory: Dir, names: list[bytes], mtime_ns: int) -> None:
        """What comes into a directory moves its time; and a user can fill it only while he may write to it."""
        mode = 0
        if not self._root:
            mode = S_IMODE(os.stat(b".", dir_fd=directory.fd()).st_mode)
            syscalls.chmod_nofollow(directory.fd(), b".", mode | 0o700)
        self._last[b"/".join(names)] = (mode, mtime_ns)

    def _directory(self, parent: Dir, names: list[bytes], opaque: bool) -> None:
        if parent.stat(names[-1]) is None:
            os.mkdir(names[-1], 0o755, dir_fd=parent.fd())
        if opaque:
            self._set_opaque(parent.child(names[-1]), names)

    def _set_opaque(self, directory: Dir, names: list[bytes]) -> None:
        """Whiteouts that came before have nothing to hide then, and the kernel lists them in what does not merge."""
        branch_marks.set_opaque(directory.fd(), b".", self._branch)
        self._opaque.add(b"/".join(names))
        todo = [directory]
        while todo:
            here = todo.pop()
            for name, kind in list(here.entries()):
                if kind is Kind.WHITEOUT:
                    os.unlink(name, dir_fd=here.fd())
                elif kind is Kind.DIRECTORY:
                    todo.append(here.child(name))

    def _find(self, names: list[bytes]) -> Dir | None:
        """The directory at a path, if it is there."""
        known = self._known(names)
        here = self._chain[-1] if self._chain else self._branch.root
        for name in names[known:]:
            st = here.stat(name)
            if st is None or not S_ISDIR(st.st_mode):
                return None
            here = here.child(name)
            self._chain.append(here)
        return here

    def _known(self, names: list[bytes]) -> int:
        """How much of the way to a path is that to the last one; the chain goes no further."""
        known = 0
        while known < min(len(names), len(self._chain)) and self._chain[known].name == names[known]:
            known += 1
        del self._chain[known:]
        return known

    def _make_room(self, parent: Dir, name: bytes, member: tarfile.TarInfo) -> bool:
        """Remove what a member replaces; whether that hid what is below."""
        st = parent.stat(name)
        if st is None:
            return False
        kind = parent.kind(name, st)
        if kind is Kind.DIRECTORY:
            if member.isdir():
                return False
            self._chain.clear()
        remove_tree(parent.fd(), name)
        return kind is not Kind.DIRECTORY

    # -- marks ----------------------------------------------------------------------------------------------------

    def _mark(self, parent: Dir, names: list[bytes], name: bytes, member: tarfile.TarInfo) -> None:
        hidden = name[len(marks.AUFS_PREFIX) :]
        if name == marks.AUFS_OPAQUE:
            self._hide_all(parent, names, tarreader.time_ns(member))
        elif name.startswith(_AUFS_OWN):
            return  # of aufs itself, and none of the layer
        elif hidden in (b"", b".", b".."):
            raise PyunionError(f"{member.name} is a whiteout of no name; the archive is hostile")
        else:
            self._leave_again([*names, hidden])
            self._whiteout(parent, [*names, hidden], tarreader.time_ns(member))

    def _leave_again(self, names: list[bytes]) -> None:
        """What came along is none of this layer's, and goes with the rest of what is below."""
        path = b"/".join(names)
        for along in [each for each in self._along if not path or (each + b"/").startswith(path + b"/")]:
            self._along.remove(along)
            *folder, name = along.split(b"/")
            directory = self._find(folder)
            assert directory is not None
            os.unlink(name, dir_fd=directory.fd())

    def _hide_all(self, parent: Dir, names: list[bytes], time_ns: int) -> None:
        if self._below is None:
            return
        self._leave_again(names)
        if parent.parent is not None:
            self._set_opaque(parent, names)
            return
        for name in self._below.names(self._below.root):  # a root cannot be opaque
            self._whiteout(parent, [name], time_ns)

    def _whiteout(self, parent: Dir, names: list[bytes], time_ns: int) -> None:
        """It hides what is below, and nothing of this layer, whatever the order in the archive. The kernel would list
        one in a directory that does not merge."""
        if self._below is None or any(b"/".join(names[:end]) in self._opaque for end in range(len(names))):
            return
        name = names[-1]
        st = parent.stat(name)
        if st is None:
            if self._below.find(b"/".join(names)) is None:
                return
            os.mknod(name, S_IFCHR, 0, dir_fd=parent.fd())
            objects.utime(parent.fd(), name, time_ns, time_ns)
        elif S_ISDIR(st.st_mode):
            self._set_opaque(parent.child(name), names)

    # -- objects --------------------------------------------------------------------------------------------------

    def _create(self, parent: Dir, name: bytes, member: tarfile.TarInfo, reader: tarreader.TarReader) -> None:
        if member.issym():
            os.symlink(member.linkname.encode("utf-8", "surrogateescape"), name, dir_fd=parent.fd())
        elif member.isfifo():
            os.mknod(name, S_IFIFO | 0o600, dir_fd=parent.fd())
        elif member.isdev():
            self._device(parent, name, member)
        elif member.isreg():
            self._file(parent, name, member, reader)
        else:
            raise PyunionError(f"{member.name} is of a type that a layer cannot have ({member.type!r})")

    def _device(self, parent: Dir, name: bytes, member: tarfile.TarInfo) -> None:
        if not self._root:
            raise PyunionError(f"{member.name} is a device, which only root can make; import the image as root")
        number = os.makedev(member.devmajor, member.devminor)
        if member.ischr() and number == 0:
            raise PyunionError(f"{member.name} is a whiteout of overlayfs, which is hostile in an archive")
        os.mknod(name, (S_IFCHR if member.ischr() else S_IFBLK) | 0o600, number, dir_fd=parent.fd())

    def _file(self, parent: Dir, name: bytes, member: tarfile.TarInfo, reader: tarreader.TarReader) -> None:
        extents = tarreader.extents(member)
        needed = sum(extent.length for extent in extents)
        fd = os.open(name, _NEW, 0o600, dir_fd=parent.fd())
        try:
            if needed > _MUCH:
                space = os.fstatvfs(fd)
                if needed > space.f_bavail * space.f_frsize:
                    raise PyunionError(f"{member.name} has {needed} bytes, and there is not so much space")
            for offset, data in reader.data(member):
                view = memoryview(data)
                while view:
                    written = os.pwrite(fd, view, offset)
                    offset += written
                    view = view[written:]
            if not extents or sum(extents[-1]) < member.size:  # a hole at its end
                os.ftruncate(fd, member.size)
        finally:
            os.close(fd)

    def _hard_link(self, parent: Dir, name: bytes, member: tarfile.TarInfo) -> None:
        target = tarreader.parts(member.linkname, f"the link {member.name} to")
        directory = self._find(target[:-1])
        st = None if directory is None or not target else directory.stat(target[-1])
        if st is None:
            found = None if self._below is None else self._below.find(b"/".join(target))
            if found is None or found.is_dir:
                raise PyunionError(f"{member.name} is a link to {member.linkname}, which is not there")
            directory = self._take_along(target, found, member.name)
            self._along.add(b"/".join(target))
        elif S_ISDIR(st.st_mode) or (directory is not None and directory.is_whiteout(target[-1], st)):
            raise PyunionError(f"{member.name} is a link to {member.linkname}, which is no file")
        assert directory is not None
        os.link(target[-1], name, src_dir_fd=directory.fd(), dst_dir_fd=parent.fd(), follow_symlinks=False)

    def _take_along(self, path: list[bytes], found: Entry, member: str) -> Dir:
        """Copy a file of the layers below to its place in this one, as copy_up would."""
        into = self._parent(path[:-1], member)
        self._chain.clear()
        if S_ISREG(found.st.st_mode):
            if found.data is None:
                raise PyunionError(f"the data of {os.fsdecode(found.name)}, to which {member} is a link, are nowhere")
            source = objects.open_file(found.data[0].fd(), found.data[1], os.O_RDONLY)
            try:
                own = objects.open_file(found.dir.fd(), found.name, os.O_RDONLY)
                try:
                    file = copyup.Source(own, source, found.st)
                    copyup.stage_file(into.fd(), path[-1], file, found.st.st_size, self._terms)
                finally:
                    os.close(own)
            finally:
                os.close(source)
        else:
            copyup.stage_other(into.fd(), path[-1], found.dir.fd(), found.name, found.st, self._terms)
        return into

    def _dress(self, directory: Dir, name: bytes, member: tarfile.TarInfo) -> None:
        fd = directory.fd()
        if self._root:
            os.chown(name, member.uid, member.gid, dir_fd=fd, follow_symlinks=False)
        if not member.issym():
            syscalls.chmod_nofollow(fd, name, member.mode & 0o7777)
        for record, value in member.pax_headers.items():
            if record.startswith(XATTR):
                key = record[len(XATTR) :].encode("utf-8", "surrogateescape")
                self._xattr(partial(objects.set_xattr, fd, name), key, value.encode("utf-8", "surrogateescape"))
        mtime_ns = tarreader.time_ns(member)
        objects.utime(fd, name, mtime_ns, mtime_ns)

    def _xattr(self, put: partial[None], key: bytes, value: bytes) -> None:
        """An attribute that would be a mark is stored as one of a union inside this one."""
        if key in _SKIPPED_XATTRS:
            return
        try:
            put(marks.stored_name(key, self._prefix), value)
        except OSError as error:
            if error.errno != EPERM or self._root:  # a user may set user.* only
                raise
