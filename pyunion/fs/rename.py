"""rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE.

Owns what has to be true on disk before the one system call that moves an object, and what the nodes are after it.
A directory with lower parts moves by a redirect: nothing is copied but the directory itself, and nothing fails
with EXDEV unless redirects are switched off. See Documentation/filesystems/overlayfs.rst, "Renaming directories".
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from errno import EINVAL, EISDIR, ENOENT, ENOTDIR, EXDEV

from pyunion.branch import syscalls
from pyunion.branch.dirs import Dir
from pyunion.branch.marks import set_opaque, set_redirect
from pyunion.fs.copier import Copier
from pyunion.fs.create import exists
from pyunion.fs.lookup import Lookup
from pyunion.fs.nodes import Directory, File, Node, Table
from pyunion.fs.protection import require_mutable
from pyunion.fs.remove import Remove, kept_open

NOREPLACE = syscalls.RENAME_NOREPLACE
EXCHANGE = syscalls.RENAME_EXCHANGE


class Rename:
    """Moves objects within the union."""

    def __init__(
        self,
        table: Table,
        lookup: Lookup,
        copier: Copier,
        remove: Remove,
        *,
        redirects: bool,
        rename_whiteout: bool,
    ) -> None:
        self._table = table
        self._lookup = lookup
        self._copier = copier
        self._remove = remove
        self._redirects = redirects
        self._rename_whiteout = rename_whiteout

    async def rename(
        self, old_parent: Directory, old_name: bytes, new_parent: Directory, new_name: bytes, flags: int
    ) -> None:
        """Move an entry, over another one or in exchange with it."""
        if flags not in (0, NOREPLACE, EXCHANGE):
            raise OSError(EINVAL, os.strerror(EINVAL))
        self._check(old_parent, old_name, new_parent, new_name, flags)
        await self._bring_up(old_parent, old_name, moves=True)
        await self._bring_up(new_parent, new_name, moves=flags == EXCHANGE)
        # no await from here on: what was checked above is checked again, and then it holds
        source, target = self._check(old_parent, old_name, new_parent, new_name, flags)
        if source is target:
            return
        old_dir = self._copier.directory(old_parent)
        new_dir = self._copier.directory(new_parent)
        if isinstance(source, Directory):
            self._copier.directory(source)
        self._name(source, old_parent, old_name)
        if flags == EXCHANGE:
            assert target is not None
            if isinstance(target, Directory):
                self._copier.directory(target)
            self._name(target, new_parent, new_name)
            self._exchange(source, old_dir, target, new_dir)
        else:
            self._move(source, old_dir, new_parent, new_dir, new_name, target)

    def _check(
        self, old_parent: Directory, old_name: bytes, new_parent: Directory, new_name: bytes, flags: int
    ) -> tuple[Node, Node | None]:
        """The nodes of both names; raises what stands against the move."""
        _ = self._copier.work
        source = self._lookup.existing(old_parent, old_name)
        entry = self._lookup.child(new_parent, new_name)
        target = entry[0] if entry is not None else None
        if target is not None and flags == NOREPLACE:
            raise exists(new_name)
        if target is not source:
            self._remove.may_go(old_parent, old_name, source)
        if target is None:
            require_mutable(new_parent)
        elif target is not source:
            self._remove.may_go(new_parent, new_name, target)
        if flags == EXCHANGE:
            if target is None:
                raise OSError(ENOENT, os.strerror(ENOENT), new_name)
            self._may_move(target)
        elif target is not None and target is not source:
            self._may_replace(source, target)
        if new_parent.dead or old_parent.dead:
            raise OSError(ENOENT, os.strerror(ENOENT), new_name)
        self._may_move(source)
        return source, target

    def _may_move(self, node: Node) -> None:
        if isinstance(node, Directory) and node.lowers:
            upper = self._copier.upper
            if not self._redirects or upper is None or upper.xattr_prefix is None:
                raise OSError(EXDEV, os.strerror(EXDEV), node.name)

    def _may_replace(self, source: Node, target: Node) -> None:
        if isinstance(target, Directory):
            if not source.is_dir:
                raise OSError(EISDIR, os.strerror(EISDIR), target.name)
            self._remove.require_empty(target)
        elif source.is_dir:
            raise OSError(ENOTDIR, os.strerror(ENOTDIR), target.name)

    async def _bring_up(self, parent: Directory, name: bytes, moves: bool) -> None:
        """What moves must be in upper, and so must what is replaced if its other names depend on it."""
        entry = self._lookup.child(parent, name)
        if entry is not None and isinstance(entry[0], File) and (moves or self._copier.links.must_index(entry[0])):
            await self._copier.data(entry[0])

    def _name(self, node: Node, parent: Directory, name: bytes) -> None:
        """Let this name of the node be the one that changes."""
        if isinstance(node, File):
            self._table.make_primary(node, parent, name)
            self._copier.links.name_in_upper(node, parent, name)

    # -- marks ------------------------------------------------------------------------------------------------

    def _mark(self, node: Node, to: Directory) -> None:
        """Before a directory moves: say where its lower parts are, or that what is below its new name is not
        part of it."""
        if not isinstance(node, Directory):
            return
        upper = node.layers[0]
        if node.lowers or node.redirect is not None:  # whose branch may come back
            redirect = _redirect(node, node.parent is to)
            if redirect is not None:
                set_redirect(upper.fd(), b".", upper.branch, redirect)
                node.redirect = redirect
        elif to.lowers and upper.branch.xattr_prefix is not None:
            set_opaque(upper.fd(), b".", upper.branch)

    # -- moving -----------------------------------------------------------------------------------------------

    def _move(
        self, source: Node, old_dir: Dir, new_parent: Directory, new_dir: Dir, new_name: bytes, target: Node | None
    ) -> None:
        assert source.parent is not None
        old_name = source.name
        covered = self._lookup.covered(source.parent, old_name)
        there = new_dir.stat(new_name)
        over_whiteout = there is not None and new_dir.is_whiteout(new_name, there)
        self._mark(source, new_parent)
        self._copier.comes_into(source, new_dir)
        with ExitStack() as stack:
            if target is not None:
                self._name(target, new_parent, new_name)
                self._make_way(target, stack)
            self._rename(old_dir, old_name, new_dir, new_name, covered, over_whiteout, source.is_dir)
        if target is not None:
            if isinstance(target, File):
                if not target.in_upper:
                    target.hidden_links += 1
                self._copier.links.after_unlink(target)
            self._table.drop_name(target)
            self._table.release(target)
        self._table.move(source, new_parent, new_name)
        _follow(source, new_dir, new_name)

    def _rename(
        self, old_dir: Dir, old: bytes, new_dir: Dir, new: bytes, covered: bool, over_whiteout: bool, is_dir: bool
    ) -> None:
        """The step on disk. The old name needs a whiteout if it is covered; a whiteout that is under the new name
        can be swapped into its place."""
        old_fd, new_fd = old_dir.fd(), new_dir.fd()
        if covered:
            self._copier.work.announce_whiteout(old_dir)
        if over_whiteout and (covered or is_dir):
            self._copier.work.exchange(old_fd, old, new_fd, new)
            if not covered:
                with suppress(OSError):  # it hides nothing
                    os.unlink(old, dir_fd=old_fd)
        elif not covered:
            os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        elif self._rename_whiteout:
            syscalls.renameat2(old_fd, old, new_fd, new, syscalls.RENAME_WHITEOUT)
        else:
            # two steps on file systems without RENAME_WHITEOUT: in between both names show the object
            os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
            self._copier.work.whiteout(old_dir, old)

    def _make_way(self, target: Node, stack: ExitStack) -> None:
        """Prepare what is in upper under the new name for being replaced while somebody may still use it; `stack` sees
        to it that it stays as it is if it is not."""
        if isinstance(target, File):
            self._copier.links.before_change(target)
            if target.in_upper:
                stack.enter_context(kept_open(target))
        elif isinstance(target, Directory) and target.in_upper:
            upper = target.layers[0]
            upper.pin()
            if target.lowers and upper.branch.xattr_prefix is not None:
                set_opaque(upper.fd(), b".", upper.branch)  # it looks empty; it must when its whiteouts are gone
                target.layers, target.redirect = (upper,), None
            self._copier.work.clear_whiteouts(upper)

    def _exchange(self, one: Node, one_dir: Dir, other: Node, other_dir: Dir) -> None:
        one_parent, one_name = one.parent, one.name
        other_parent, other_name = other.parent, other.name
        assert one_parent is not None
        assert other_parent is not None
        self._mark(one, other_parent)
        self._mark(other, one_parent)
        self._copier.comes_into(one, other_dir)
        self._copier.comes_into(other, one_dir)
        syscalls.renameat2(one_dir.fd(), one_name, other_dir.fd(), other_name, EXCHANGE)
        one.parent, one.name = other_parent, other_name
        other.parent, other.name = one_parent, one_name
        other_parent.children[other_name] = one
        one_parent.children[one_name] = other
        self._table.moves += one.is_dir or other.is_dir
        _follow(one, other_dir, other_name)
        _follow(other, one_dir, one_name)


def _follow(node: Node, into: Dir, name: bytes) -> None:
    """The object in upper has moved with its name."""
    if isinstance(node, File):
        node.at(into, name)
    elif isinstance(node, Directory):
        node.layers[0].move(into, name)


def _redirect(node: Directory, same_parent: bool) -> bytes | None:
    """What the mark on a directory must say when it moves; None where what it says now stays right.

    Within its parent a name is enough; else it is the path of the lower parts from the root of the union.
    """
    if node.redirect is not None and (same_parent or node.redirect.startswith(b"/")):
        return None
    if same_parent:
        return node.name
    parts: list[bytes] = []
    directory: Directory | None = node
    while directory is not None and directory.parent is not None:
        part = directory.redirect or directory.name
        parts.append(part.lstrip(b"/"))
        if part.startswith(b"/"):
            break
        directory = directory.parent
    return b"/" + b"/".join(reversed(parts))
