"""The request handlers for pyfuse3, without the extension: each turns a request into one call of pyunion.fs, and its
result into a reply. With the extension requests go to pyunion/fuse/rawops.py.

Owns the kernel's view of attributes and cache times, and the count of references that replies give out. The
kernel checks permissions (default_permissions) and is told to cache for as long as it likes: this daemon is the
only one that changes the union.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from errno import ENAMETOOLONG, ENOSYS
from stat import S_IMODE
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields

from pyunion.fs.attributes import Changes
from pyunion.fs.files import OpenFiles
from pyunion.fs.filesystem import FileSystem
from pyunion.fs.listing import as_far_as_known
from pyunion.fs.lookup import attributes, link_count
from pyunion.fs.nodes import ROOT, Directory, File, Node
from pyunion.fs.waiting import in_thread
from pyunion.fuse.guard import guarded
from pyunion.fuse.layout import FOREVER_S

log = logging.getLogger(__name__)

async def send_and_drop_pages(number: int) -> None:
    """Let the kernel write what it holds back of a node, and forget the rest. In a thread: it asks us meanwhile."""
    await in_thread(pyfuse3.invalidate_inode, number)


def drop_attributes(number: int) -> None:
    """Let the kernel ask again for what it keeps of a node."""
    pyfuse3.invalidate_inode(pyfuse3.InodeT(number), attr_only=True)


def drop_name(parent: int, name: bytes) -> None:
    """Let the kernel look a name up again when it is next used. At once would wait for who uses the directory now."""
    pyfuse3.invalidate_entry_async(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name), ignore_enoent=True)


def keep_no_miss(directory: Directory, name: bytes) -> None:
    """Let the kernel not keep that a directory that is gone has no such name, which would keep the directory, and what
    that is in, for as long as there is memory."""
    drop_name(directory.ino, name)


class doubting:
    """For changes of attributes. One that fails may have taken setuid, which the kernel would go on to honour."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, OSError):
            drop_attributes(self._number)


class modes_told:
    """Tell the kernel of modes that change by what is done inside, or by what fails there: it would go on to honour a
    setuid bit that is gone."""

    def __init__(self, files: OpenFiles) -> None:
        self._files = files

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        while self._files.changed_modes:
            drop_attributes(self._files.changed_modes.pop())


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls."""

    supports_dot_lookup = False
    enable_acl = True

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self.enable_writeback_cache = fs.settings.writeback
        self._fs = fs
        self._nodes = fs.table.nodes
        owners = fs.settings.owners
        self._owners = None if owners.all_as_stored else owners
        self._missing = EntryAttributes()  # the answer "no such name", which the kernel keeps
        self._missing.st_ino = pyfuse3.InodeT(0)
        self._missing.entry_timeout = FOREVER_S

    def init(self) -> None:
        pass

    # -- replies ----------------------------------------------------------------------------------------------

    def _attr(self, node: Node, st: os.stat_result) -> EntryAttributes:
        attr: Any = EntryAttributes()
        attr.st_ino = node.ino
        attr.entry_timeout = attr.attr_timeout = FOREVER_S
        attr.st_mode = st.st_mode
        attr.st_nlink = st.st_nlink if not (node.is_dir or node.hidden_links) else link_count(node, st)
        attr.st_uid = st.st_uid
        attr.st_gid = st.st_gid
        if self._owners is not None:
            attr.st_uid = self._owners.uids.shown(st.st_uid)
            attr.st_gid = self._owners.gids.shown(st.st_gid)
        attr.st_rdev = st.st_rdev
        attr.st_size = st.st_size
        attr.st_blocks = st.st_blocks
        attr.st_blksize = st.st_blksize
        attr.st_atime_ns = st.st_atime_ns
        attr.st_mtime_ns = st.st_mtime_ns
        attr.st_ctime_ns = st.st_ctime_ns
        return attr  # type: ignore[no-any-return]

    def _entry(self, node: Node, st: os.stat_result) -> EntryAttributes:
        """A reply that gives the kernel a reference to the node."""
        node.lookups += 1
        return self._attr(node, st)

    def _stat(self, node: Node, st: os.stat_result) -> EntryAttributes:
        attr = self._attr(node, st)
        if node.ino == ROOT:
            attr.st_ino = self._fs.root_number
        return attr

    # -- look-up and attributes -------------------------------------------------------------------------------

    @guarded
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        fs = self._fs
        if len(fs.cache) > fs.cache.limit:
            fs.cache.trim()
        if len(name) > fs.name_max:
            raise pyfuse3.FUSEError(ENAMETOOLONG)
        directory = fs.directory(parent)
        entry = fs.lookup.child(directory, name)
        if entry is None and directory.dead:
            keep_no_miss(directory, name)
        return self._missing if entry is None else self._entry(*entry)

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:  # type: ignore[override]
        try:
            self._fs.table.forget(inode_list)
        except Exception:  # there is no reply to forget, and no caller to be told
            log.exception("forget failed")

    @guarded
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        node = self._nodes[inode]
        return self._stat(node, attributes(node))

    @guarded
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._nodes[inode]
        changes = Changes(
            attr.st_size if fields.update_size else None,
            attr.st_uid if fields.update_uid else None,
            attr.st_gid if fields.update_gid else None,
            S_IMODE(attr.st_mode) if fields.update_mode else None,
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
        )
        with doubting(inode):
            return self._stat(node, await self._fs.attributes.change(node, changes, fh, ctx))

    @guarded
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._fs.attributes.read_link(self._nodes[inode])

    @guarded
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        st = self._fs.space()
        data = pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, name, getattr(st, name))
        data.f_namemax = st.f_namemax
        return data

    # -- names ------------------------------------------------------------------------------------------------

    @guarded
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*self._fs.create.special(self._fs.directory(parent), name, mode, rdev, ctx))

    @guarded
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*self._fs.create.directory(self._fs.directory(parent), name, mode, ctx))

    @guarded
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(*self._fs.create.symlink(self._fs.directory(parent), name, target, ctx))

    @guarded
    async def link(self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._nodes[inode]
        assert isinstance(node, File)
        st = await self._fs.create.link(node, self._fs.directory(new_parent), new_name)
        return self._entry(node, st)

    @guarded
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.remove.file(self._fs.directory(parent), name)

    @guarded
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.remove.directory(self._fs.directory(parent), name)

    @guarded
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        fs = self._fs
        await fs.rename.rename(fs.directory(parent), name, fs.directory(new_parent), new_name, flags)

    # -- files ------------------------------------------------------------------------------------------------

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self._nodes[inode]
        assert isinstance(node, File)
        files = self._fs.files
        with modes_told(files):
            fh: Any = await files.open(node, flags, ctx)
        return FileInfo(fh=fh, keep_cache=True, direct_io=files.is_direct(fh))

    @guarded
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        fs = self._fs
        node, st, fd = fs.create.file(fs.directory(parent), name, mode, ctx)
        fs.files.add_new(fd, node, st, flags, ctx)
        handle: Any = fd
        return FileInfo(fh=handle, keep_cache=True), self._entry(node, st)

    @guarded
    async def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        return await self._fs.files.read(fh, offset, size)

    @guarded
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        files = self._fs.files
        with modes_told(files):
            written = files.write(fh, offset, data)
        stale = files.leaves_stale(fh)
        if stale is not None:
            await send_and_drop_pages(stale)
        return written

    @guarded
    def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(ENOSYS)  # once: nothing is to be done at close, and the kernel asks no more

    @guarded
    def release(self, fh: int) -> None:
        self._fs.files.release(fh)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.files.fsync(fh, datasync)

    @guarded
    def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        raise pyfuse3.FUSEError(ENOSYS)  # the kernel checks permissions itself

    # -- directories ------------------------------------------------------------------------------------------

    @guarded
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode  # a listing needs no more

    @guarded
    def readdir(self, fh: int, offset: int, token: ReaddirToken) -> None:
        fs = self._fs
        reply: Any = pyfuse3.readdir_reply
        if len(fs.cache) > fs.cache.limit:
            fs.cache.trim()
        for name, node, st, following in as_far_as_known(fs.listings.entries(fs.directory(fh), offset)):
            if following <= 2:  # . and .. give no reference
                if not reply(token, name, self._stat(node, st), following):
                    return
            elif not reply(token, name, self._attr(node, st), following):
                if node.lookups == 0:
                    fs.table.release(node)
                return
            else:
                node.lookups += 1

    @guarded
    def releasedir(self, fh: int) -> None:
        pass

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.files.fsync_directory(self._fs.directory(fh))

    # -- extended attributes ----------------------------------------------------------------------------------

    @guarded
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self._fs.attributes.get_xattr(self._nodes[inode], name)

    @guarded
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._fs.attributes.list_xattr(self._nodes[inode], ctx)

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        with doubting(inode):
            await self._fs.attributes.set_xattr(self._nodes[inode], name, value, ctx)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.attributes.remove_xattr(self._nodes[inode], name)
