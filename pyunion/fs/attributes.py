"""Owner, mode, times, size and extended attributes of nodes.

Owns the order in which attributes are changed and which xattrs are to be seen. Brings the object into upper
before a change; what is on disk is pyunion/branch/objects.py.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from errno import EEXIST, ENODATA, ENOTSUP, ENOTTY
from stat import S_IMODE, S_ISGID
from typing import NamedTuple

from pyunion.branch import fileattr, objects
from pyunion.fs import protection
from pyunion.fs.callers import CAP_FSETID, CAP_SYS_ADMIN, Caller, is_capable, is_member
from pyunion.fs.copier import Copier, First
from pyunion.fs.files import clear_setid
from pyunion.fs.lookup import attributes
from pyunion.fs.nodes import CAPABILITIES, Directory, File, Node
from pyunion.union import marks
from pyunion.union.ids import Owners

_ACL_ACCESS = b"system.posix_acl_access"
_ACLS = frozenset({_ACL_ACCESS, b"system.posix_acl_default"})


class Changes(NamedTuple):
    """New attributes; None leaves one as it is. Times are in ns since the epoch."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None  # permission bits only
    atime_ns: int | None = None
    mtime_ns: int | None = None
    now: bool = False  # the times are those of this moment


_NO_CHANGES = Changes()


class Attributes:
    """Changes attributes of nodes."""

    def __init__(self, copier: Copier, xattr_prefix: bytes, owners: Owners) -> None:
        self._copier = copier
        self._prefix = xattr_prefix
        self._owners = owners

    async def change(self, node: Node, changes: Changes, fd: int | None, caller: Caller) -> os.stat_result:
        """Apply changes; `fd` is the handle that a truncation, or times that the kernel has kept, came through. Returns
        the new attributes."""
        if isinstance(node, File) and node.dead and not node.in_upper and not node.is_open:
            return attributes(node)  # with the writeback cache the kernel notes the end of a file in its change time
        self._may_change(node, changes, fd)
        prepare = self._preparing(changes, caller)
        if changes.size is None:
            if not node.in_upper:
                await self._bring_up(node)
            prepare(*node.address())
            self._set_times(node, changes)
        else:
            assert isinstance(node, File)
            await self._truncate(node, changes.size, fd, prepare)
            with suppress(OSError):  # only the kernel gives both, and what it notes is the time of this moment
                self._set_times(node, changes)
        return attributes(node)

    @staticmethod
    def _may_change(node: Node, changes: Changes, fd: int | None) -> None:
        """Raises EPERM for what chattr(1) forbids; not for the kernel's note of when a file was written."""
        both = changes.atime_ns is not None and changes.mtime_ns is not None
        if changes.now and both and changes._replace(atime_ns=None, mtime_ns=None, now=False) == _NO_CHANGES:
            protection.require_mutable(node)
        elif fd is None or changes.size is not None:
            protection.require_changeable(node)

    def _preparing(self, changes: Changes, caller: Caller) -> First:
        """The changes of owner and mode, which come before a truncation: one that fails has cut nothing. Raises
        EOVERFLOW for an owner that no branch can have."""
        uid = -1 if changes.uid is None else self._owners.uids.stored(changes.uid)
        gid = -1 if changes.gid is None else self._owners.gids.stored(changes.gid)
        is_owned = changes.uid is not None or changes.gid is not None

        def prepare(fd: int, name: bytes) -> None:
            if changes.size is not None:
                clear_setid((fd, name), caller, self._owners.gids)
            if is_owned:
                objects.chown(fd, name, uid, gid)
            # After the owner: chown clears setuid and setgid. Where the kernel wants no more, nothing is left to fail.
            if changes.mode is not None and not (is_owned and _mode(fd, name) == changes.mode):
                objects.chmod(fd, name, changes.mode)

        return prepare

    async def _truncate(self, file: File, size: int, fd: int | None, prepare: First) -> None:
        if await self._copier.data(file, size, prepare):
            return
        with ExitStack() as stack:
            if fd is None:
                fd = objects.open_file(*file.address(), os.O_WRONLY)
                stack.callback(os.close, fd)
            prepare(*file.address())
            os.ftruncate(fd, size)

    def _set_times(self, node: Node, changes: Changes) -> None:
        if changes.atime_ns is None and changes.mtime_ns is None:
            return
        _set_times(node.address(), changes)
        if not isinstance(node, File):
            return
        self._copier.times_were_set(node, changes.atime_ns, changes.mtime_ns)
        if changes.mtime_ns is not None:
            node.told_mtime_ns = changes.mtime_ns
            node.written = False

    async def _bring_up(self, node: Node) -> None:
        if isinstance(node, File):
            await self._copier.metadata(node)
        elif isinstance(node, Directory):
            self._copier.directory(node)

    @staticmethod
    def read_link(node: Node) -> bytes:
        """What a symlink says."""
        return node.ask(objects.readlink)

    @staticmethod
    def statx(node: Node, mask: int) -> bytearray:
        """struct statx of the object (statx(2)); its number and its link count are the branch's."""
        return node.ask(objects.statx, mask)

    async def ioctl(self, node: Node, command: int, argument: bytearray) -> None:
        """Inode flags as chattr(1) and lsattr(1) know them; `argument` is changed in place. Else ENOTTY."""
        if command not in fileattr.COMMANDS:
            raise OSError(ENOTTY, os.strerror(ENOTTY))
        if command in fileattr.SETTING:
            if isinstance(node, File):
                await self._copier.data(node)
            else:
                await self._bring_up(node)
            assert self._copier.upper is not None
            branch = self._copier.upper
            with fileattr.stored(command, argument, node.address(), branch, node.protection) as wanted:
                argument[:] = node.ask(fileattr.on_object, command, bytes(argument))
            node.protection = wanted
        else:
            argument[:] = node.ask(fileattr.on_object, command, bytes(argument))
        fileattr.show(command, argument, node.protection)

    # -- extended attributes ----------------------------------------------------------------------------------

    @staticmethod
    def lacks(node: Node, name: bytes) -> bool:
        """Whether it is known without a look that an object has no such xattr: the kernel asks for file capabilities
        before the first write to each new file, and before each change of its owner."""
        return name == CAPABILITIES and isinstance(node, File) and node.incapable

    def get_xattr(self, node: Node, name: bytes) -> bytes:
        if self.lacks(node, name):
            raise OSError(ENODATA, os.strerror(ENODATA))
        try:
            value = node.ask(objects.get_xattr, marks.stored_name(name, self._prefix))
        except OSError as error:
            if error.errno == ENOTSUP and name in _ACLS:
                # A branch without ACLs. The kernel, which asks before it lets in others than the owner, wants to hear
                # that there is none; any other answer is its own to them.
                raise OSError(ENODATA, os.strerror(ENODATA)) from None
            raise
        if name in _ACLS:
            return self._owners.acl_shown(value)
        return self._owners.capabilities_shown(value) if name == CAPABILITIES else value

    def list_xattr(self, node: Node, caller: Caller) -> list[bytes]:
        """The names that the caller may know; the kernel leaves it to us to hide trusted ones."""
        names = [marks.visible_name(name, self._prefix) for name in node.ask(objects.list_xattr)]
        shown = [name for name in names if name is not None]
        if any(name.startswith(b"trusted.") for name in shown) and not is_capable(caller, CAP_SYS_ADMIN):
            return [name for name in shown if not name.startswith(b"trusted.")]
        return shown

    async def set_xattr(self, node: Node, name: bytes, value: bytes, caller: Caller, flags: int = 0) -> None:
        """setxattr(2), with its flags."""
        if flags:
            self._check_exists(node, name, flags)
        if name in _ACLS:
            value = self._owners.acl_stored(value)
        elif name == CAPABILITIES:
            value = self._owners.capabilities_stored(value)
        protection.require_changeable(node)
        await self._bring_up(node)
        where = node.address()
        if isinstance(node, File):
            node.incapable = False
        if name == _ACL_ACCESS:
            self._set_acl(where, value, caller)
        else:
            objects.set_xattr(*where, marks.stored_name(name, self._prefix), value)

    def _check_exists(self, node: Node, name: bytes, flags: int) -> None:
        """Raises EEXIST or ENODATA where XATTR_CREATE or XATTR_REPLACE ask for it."""
        try:
            self.get_xattr(node, name)
        except OSError as error:
            if error.errno != ENODATA or flags & os.XATTR_REPLACE:
                raise
        else:
            if flags & os.XATTR_CREATE:
                raise OSError(EEXIST, os.strerror(EEXIST), name)

    def _set_acl(self, where: tuple[int, bytes], value: bytes, caller: Caller) -> None:
        """An ACL changes the mode, and setgid goes with a change of mode by somebody outside the group, as by chmod. It
        goes first, so that it never stands with the new ACL; and is not given back where that fails, as the data may
        have been changed meanwhile."""
        st = objects.stat(*where)
        stays = not st.st_mode & S_ISGID or is_member(caller, self._owners.gids.shown(st.st_gid))
        if not (stays or is_capable(caller, CAP_FSETID)):
            objects.chmod(*where, S_IMODE(st.st_mode) & ~S_ISGID)
        objects.set_xattr(*where, _ACL_ACCESS, value)

    async def remove_xattr(self, node: Node, name: bytes) -> None:
        """Removing what is not there copies nothing up."""
        protection.require_changeable(node)
        stored = marks.stored_name(name, self._prefix)
        try:
            node.ask(objects.get_xattr, stored)
        except OSError as error:
            if error.errno in (ENODATA, ENOTSUP):
                raise
        await self._bring_up(node)
        objects.remove_xattr(*node.address(), stored)


def _mode(fd: int, name: bytes) -> int:
    return S_IMODE(objects.stat(fd, name).st_mode)


def _set_times(where: tuple[int, bytes], changes: Changes) -> None:
    atime_ns, mtime_ns = changes.atime_ns, changes.mtime_ns
    if atime_ns is None or mtime_ns is None:
        st = objects.stat(*where)
        atime_ns = st.st_atime_ns if atime_ns is None else atime_ns
        mtime_ns = st.st_mtime_ns if mtime_ns is None else mtime_ns
    try:
        objects.utime(*where, atime_ns, mtime_ns)
    except PermissionError:
        if not changes.now:
            raise
        objects.touch(*where)  # what is append-only (chattr(1)) lets itself be touched, and nothing else

