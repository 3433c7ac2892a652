"""Removing names: unlink and rmdir.

Owns when a whiteout is left behind (something below would show again) and what an object that is still in use
goes on by. All but a copy_up that an indexed file may need first is synchronous.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR, ENOTDIR, ENOTEMPTY, EPERM

from pyunion.branch import objects
from pyunion.fs.copier import Copier
from pyunion.fs.lookup import Lookup
from pyunion.fs.nodes import Directory, File, Node, Table
from pyunion.fs.protection import require_changeable


class Remove:
    """Removes names from the union."""

    def __init__(self, table: Table, lookup: Lookup, copier: Copier) -> None:
        self._table = table
        self._lookup = lookup
        self._copier = copier

    async def file(self, parent: Directory, name: bytes) -> None:
        """unlink(2)."""
        work = self._copier.work
        node = self._file(parent, name)
        self.may_go(parent, name, node)
        if self._copier.links.must_index(node):
            await self._copier.data(node)
            node = self._file(parent, name)
        self._table.make_primary(node, parent, name)
        self._copier.links.name_in_upper(node, parent, name)
        self._copier.links.before_change(node)
        if node.in_upper:
            into = parent.layers[0]
            covered = self._lookup.covered(parent, name)
            with kept_open(node):
                if covered:
                    work.whiteout_over(into, name, is_dir=False)
                else:
                    os.unlink(name, dir_fd=into.fd())
        else:
            work.whiteout(self._copier.directory(parent), name)
            node.hidden_links += 1
        self._copier.links.after_unlink(node)
        self._dropped(node)

    def _file(self, parent: Directory, name: bytes) -> File:
        node = self._lookup.existing(parent, name)
        if not isinstance(node, File):
            raise OSError(EISDIR, os.strerror(EISDIR), name)
        return node

    def directory(self, parent: Directory, name: bytes) -> None:
        """rmdir(2) of a directory that looks empty, whatever whiteouts it holds."""
        work = self._copier.work
        node = self._lookup.existing(parent, name)
        if not isinstance(node, Directory):
            raise OSError(ENOTDIR, os.strerror(ENOTDIR), name)
        self.may_go(parent, name, node)
        self.require_empty(node)
        if node.in_upper:
            into = parent.layers[0]
            covered = self._lookup.covered(parent, name)
            node.layers[0].pin()
            if covered:
                work.whiteout_over(into, name, is_dir=True)
            else:
                try:
                    os.rmdir(name, dir_fd=into.fd())
                except OSError as error:
                    if error.errno != ENOTEMPTY:
                        raise
                    work.take_out(into, name)
        else:
            work.whiteout(self._copier.directory(parent), name)
        self._dropped(node)

    def may_go(self, parent: Directory, name: bytes, node: Node) -> None:
        """Raises EPERM where chattr(1) keeps a name from going, before anything is copied. Where the parent's object in
        upper has the flag itself, its file system would not say so: a whiteout only adds a name."""
        require_changeable(parent)
        require_changeable(node)
        asked = node.in_upper and not node.is_dir  # of a directory it would say first that it is not empty
        if parent.in_upper and not asked and objects.protection(*parent.address()):
            raise OSError(EPERM, os.strerror(EPERM), name)

    def require_empty(self, node: Directory) -> None:
        """Raises ENOTEMPTY unless the directory looks empty in the union."""
        if self._lookup.listing(node):
            raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY), node.name)

    def _dropped(self, node: File | Directory) -> None:
        self._table.drop_name(node)
        self._table.release(node)  # where the kernel never knew it


@contextmanager
def kept_open(node: File) -> Iterator[None]:
    """While a file in upper loses the last name that is known: it goes on by a descriptor, unless it keeps the name."""
    pins = node.pin < 0 and not node.aliases and node.index is None
    if pins:
        node.pin = os.open(node.real, objects.PIN, dir_fd=node.dir.fd())
    try:
        yield
    except OSError:
        if pins:
            os.close(node.pin)
            node.pin = -1
        raise
