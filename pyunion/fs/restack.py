"""Other lower branches under the nodes that the kernel knows: what stays the same object, and what does not.

Owns the step from one stack of layers to another, from the root down. A directory goes on as long as its name shows a
directory, whichever parts that has; anything else goes on under a name as long as that shows the same object of a
branch. What is left loses its name, as if it had been removed: who has it open goes on with it. What is in upper stays,
as upper is above all. Everything is synchronous; the kernel is told afterwards, by pyunion/fuse/stale.py. What
branches that may not answer have to say is known before, from pyunion/fs/rehearsal.py; what is not, is as if it failed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from pyunion.branch.dirs import Branch, Dir
from pyunion.fs.lookup import Found, Lookup
from pyunion.fs.nodes import Directory, File, Node, Table
from pyunion.fs.waiting import Unanswered
from pyunion.union import marks

log = logging.getLogger(__name__)

Where = tuple[Branch, tuple[bytes, ...]]


class Stale(NamedTuple):
    """What the kernel may have kept and must not go on with."""

    names: list[tuple[Directory, bytes, Node | None]]  # that may stand for something else now; and for what, if known
    nodes: list[Node]  # whose attributes or data may differ


class Restacking:
    """One change. With `every` all names are looked up again, else those that are in a layer that came or went; with
    `changed_outside` the data of lower objects may be others, too."""

    def __init__(self, table: Table, lookup: Lookup, *, every: bool, changed_outside: bool) -> None:
        self._table = table
        self._lookup = lookup
        self._every = every
        self._changed_outside = changed_outside
        self._stale = Stale([], [])
        self._todo: list[tuple[Directory, Sequence[Dir]]] = []

    def run(self, roots: Sequence[Dir]) -> Stale:
        """Give the root these layers, and all nodes what follows from it."""
        self._todo.append((self._table.root, roots))
        while self._todo:
            directory, layers = self._todo.pop()
            if self._table.nodes.get(directory.ino) is directory:
                self._directory(directory, layers)
        return self._stale

    # -- directories ------------------------------------------------------------------------------------------

    def _directory(self, directory: Directory, layers: Sequence[Dir]) -> None:
        before = {where(layer): layer for layer in directory.layers}
        after = {where(layer): layer for layer in layers}
        for place, layer in after.items():
            before.get(place, layer).xwhiteouts = layer.xwhiteouts
        gone = [layer for place, layer in before.items() if place not in after]
        new = [layer for place, layer in after.items() if place not in before]
        directory.layers = tuple(before.get(place, layer) for place, layer in after.items())
        names = self._names(directory, [*gone, *(directory.lowers if self._every else new)])
        for layer in gone:
            if layer.parent is not None:
                layer.close()
        if gone or new or self._every:
            directory.first_below, directory.looks = None, 0
            if directory.listing is not None:
                directory.listing = directory.listing._replace(layers=[0] * len(directory.listing.names))
            self._stale.nodes.append(directory)
        for name, node in list(directory.children.items()):
            if isinstance(node, Directory):
                self._subdirectory(directory, name, node)
            elif isinstance(node, File) and depends(node) and (self._every or name in names or node.data):
                self._file(directory, name, node)
        # The kernel may have kept that there is nothing.
        self._stale.names.extend((directory, name, None) for name in names if name not in directory.children)

    @staticmethod
    def _names(directory: Directory, layers: Sequence[Dir]) -> set[bytes]:
        """What may show something else now; where a layer does not tell, that is all that shows, or is known."""
        names: set[bytes] = set()
        if not _list(layers, names):
            names.update(directory.children)
            _list(directory.layers, names)
        return names

    def _subdirectory(self, parent: Directory, name: bytes, directory: Directory) -> None:
        found = self._find(parent, name)
        layers = layers_after(directory, found, self._table.root.layers)
        if not layers:
            self._drop_tree(directory)
            return
        directory.copied = directory.copied or (found is not None and found.lower_st is not None)
        self._todo.append((directory, layers))

    def _drop_tree(self, top: Directory) -> None:
        for directory in reversed(tree_of(top)):
            for name, child in list(directory.children.items()):
                if isinstance(child, File):
                    self._drop_file(directory, name, child)
            assert directory.parent is not None
            self._stale.names.append((directory.parent, directory.name, None))
            self._table.drop_name(directory)
            self._table.release(directory)

    # -- anything else ----------------------------------------------------------------------------------------

    def _file(self, parent: Directory, name: bytes, file: File) -> None:
        found = self._find(parent, name)
        if found is not None and self._is_same(file, found):
            self._settle(file, found)
            if self._changed_outside:
                self._may_have_changed(parent, name, file, found.st)
        elif not file.in_upper or file.index is not None:
            self._drop_file(parent, name, file)

    def _may_have_changed(self, parent: Directory, name: bytes, file: File, st: os.stat_result) -> None:
        """A number may have come to a new object, also of another type, if nobody has the old one open."""
        self._stale.nodes.append(file)
        if not file.fds:
            self._stale.names.append((parent, name, file))
        if not file.in_upper and file.key is None and st.st_nlink > 1:
            self._table.add_link(file, st)

    def _is_same(self, file: File, found: Found) -> bool:
        if found.layers:
            return False
        if file.index is not None or found.entry is not None:
            return file.index == found.entry
        if file.in_upper or found.dir.branch.is_upper:
            return file.in_upper and found.dir.branch.is_upper
        return self._table.is_of(file, found.st) and _same_data(file, found)

    @staticmethod
    def _settle(file: File, found: Found) -> None:
        """Where the object is now."""
        if not file.in_upper:
            file.dir, file.real = found.dir, found.name
        file.data = found.data

    def _drop_file(self, parent: Directory, name: bytes, file: File) -> None:
        self._stale.names.append((parent, name, None))
        self._table.make_primary(file, parent, name)
        self._table.drop_name(file)
        if file.dead:
            self._hold(file)
        elif not file.in_upper and file.parent is not None:
            found = self._find(file.parent, file.name)
            if found is not None and self._is_same(file, found):
                self._settle(file, found)
        self._table.release(file)

    def _hold(self, file: File) -> None:
        """A file without a name is what those have open who use it. Its place may be another one's by now; but if a
        name shows it again, it is the same file still."""
        if file.in_upper or file.is_held():
            return
        st = None
        if file.remote is not None and not self._changed_outside:
            with suppress(OSError, Unanswered):
                st = file.stat()
        if file.fds and file.data is None:
            with suppress(OSError):  # else it is reached by its branch, for as long as somebody uses it
                file.hold(os.open(b"/proc/self/fd/%d" % file.fds[0], os.O_PATH | os.O_CLOEXEC))
        if not file.is_held() and self._changed_outside:
            file.dir, file.real = file.dir.branch.root, b""
        elif file.key is None and file.data is None:
            with suppress(OSError, Unanswered):
                self._table.add_link(file, st or file.stat())

    def _find(self, parent: Directory, name: bytes) -> Found | None:
        try:
            return self._lookup.find(parent, name)
        except (OSError, Unanswered) as error:  # which the next look-up will tell
            log.info("%r cannot be looked up: %s", name, error)
            return None


def _list(layers: Sequence[Dir], names: set[bytes]) -> bool:
    """Add the names in all layers; whether all could be listed."""
    complete = True
    for layer in layers:
        try:
            names |= names_in(layer)
        except (OSError, Unanswered) as error:
            log.warning("cannot list a directory of %r: %s", layer.branch.path, error)
            complete = False
    return complete


def names_in(layer: Dir) -> set[bytes]:
    """The names for which a directory has something to say."""
    found = layer.names()
    names = set(found)
    if layer.branch.aufs:
        prefix = marks.AUFS_PREFIX
        names.update(name[len(prefix) :] for name in found if name.startswith(prefix))
        names.discard(b"")
    return names


def layers_after(directory: Directory, found: Found | None, root: Sequence[Dir]) -> Sequence[Dir]:
    """The layers that a directory has when its name shows this, in a union with this root; none if it is gone."""
    if found is not None and found.layers:
        return (directory.layers[0], *found.layers[1:]) if directory.in_upper else found.layers
    if not directory.in_upper:
        return ()
    branches = {layer.branch for layer in root}  # one that cannot be looked up again keeps what there is of it
    return [layer for layer in directory.layers if layer.branch in branches]


def tree_of(top: Directory) -> list[Directory]:
    """A directory and all known ones below it, each after the one that it is in."""
    tree = [top]
    for directory in tree:
        tree += [child for child in directory.children.values() if isinstance(child, Directory)]
    return tree


def where(layer: Dir) -> Where:
    """What tells a directory of a branch from others, also if there are two objects for it."""
    names = []
    directory = layer
    while directory.parent is not None:
        names.append(directory.name)
        directory = directory.parent
    return layer.branch, tuple(reversed(names))


def depends(file: File) -> bool:
    """Whether lower branches have a say in what its name shows."""
    return not file.in_upper or file.index is not None or file.data is not None


def _same_data(file: File, found: Found) -> bool:
    """Whether the data of a metadata-only copy in a lower branch are those that they were."""
    if file.data is None or found.data is None:
        return file.data is found.data
    try:
        before, after = file.data[0].stat(file.data[1]), found.data[0].stat(found.data[1])
    except (OSError, Unanswered):
        return False
    return before is not None and after is not None and os.path.samestat(before, after)
