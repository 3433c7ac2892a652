"""Look-up: from a directory node and a name to the object of the union, layer by layer.

Owns which object a name stands for, the index included. The rule of who wins is in pyunion/union/merge.py; how
redirects lead from one layer to the next is pyunion/branch/below.py. Changes nothing, and everything is synchronous.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from errno import EIO, ENOENT
from stat import S_IFMT, S_ISREG
from typing import NamedTuple

from pyunion.branch.below import Layers, Part, below
from pyunion.branch.dirs import Dir
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.branch.marks import read_dir_marks, read_file_marks
from pyunion.fs.nodes import Directory, File, Node, Table
from pyunion.union import marks
from pyunion.union.merge import Kind, merge_listings
from pyunion.union.origin import index_name

log = logging.getLogger(__name__)


# Up to so many layers are asked one after the other; the names in more are listed, after so many looks.
FEW = 4
_LOOKS_BEFORE_LISTING = 3
_MOST_NAMES = 1 << 16  # more than that are not kept in mind


class Found(NamedTuple):
    """The object that a name of the union stands for."""

    st: os.stat_result
    dir: Dir  # where its topmost part is
    name: bytes  # and under which name
    layers: tuple[Dir, ...] = ()  # a directory's layers
    redirect: bytes | None = None  # of its directory in upper
    data: tuple[Dir, bytes] | None = None  # where the data of a metadata-only copy are
    lower_st: os.stat_result | None = None  # of the topmost lower part or the origin, which has the number
    entry: bytes | None = None  # the name of an indexed file in the index
    protection: int = 0  # what a mark on it in upper says: APPEND and IMMUTABLE
    unlike_below: bool = False  # the name has no link in upper, and what is below it is not the same any more


class Lookup:
    """Finds objects and gives them nodes."""

    def __init__(
        self,
        table: Table,
        data_layers: Sequence[Dir],
        origins: Origins | None,
        index: Index | None,
        follow_redirects: bool,
    ) -> None:
        self.table = table
        self.data_layers = data_layers  # searched for nothing but the data of metadata-only copies
        self.root = table.root
        self.origins = origins
        self.index = index
        self.follow = follow_redirects
        self.settle: Callable[[File, Directory, bytes], None] | None = None  # told of names to link in upper

    # -- nodes ------------------------------------------------------------------------------------------------

    def child(self, parent: Directory, name: bytes, start: int = 0) -> tuple[Node, os.stat_result] | None:
        """The node of an entry with its attributes; None where there is none.

        `start` is the first layer to look at, for a caller that knows that those above have nothing.
        """
        node = parent.children.get(name)
        if node is not None:
            try:
                return node, attributes(node)
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                # the branch was changed behind our back: what is there now is something else
                self.table.drop_name(node)
        elif parent.dead:
            return None
        found = self.find(parent, name, start)
        if found is None:
            return None
        node = self._node(parent, name, found)
        if found.unlike_below and self.settle is not None and isinstance(node, File):
            self.settle(node, parent, name)
            return node, attributes(node)
        return node, attributes(node) if found.data is not None else found.st

    def existing(self, parent: Directory, name: bytes) -> Node:
        """The node of an entry; raises ENOENT."""
        entry = self.child(parent, name)
        if entry is None:
            raise OSError(ENOENT, os.strerror(ENOENT), name)
        return entry[0]

    def _node(self, parent: Directory, name: bytes, found: Found) -> Node:
        st = found.st
        if found.layers:
            directory = Directory(parent, name, found.layers)
            directory.redirect = found.redirect
            shown = found.lower_st or st
            directory.copied = found.lower_st is not None
            directory.protection = found.protection
            self.table.add(directory, shown.st_dev, shown.st_ino)
            return directory
        known = self.table.linked.get((st.st_dev, st.st_ino)) if self.table.linked else None
        if known is not None:
            self._another_name(known, parent, name, found)
            return known
        file = File(parent, name, found.dir, found.name)
        file.data = found.data
        shown = found.lower_st or st
        file.copied = found.lower_st is not None
        file.protection = found.protection
        if found.entry is not None and self.index is not None:
            file.index = found.entry
            file.lower_links = shown.st_nlink
            file.hidden_links = self.index.hidden_links(found.entry, st, shown.st_nlink)
        self.table.add(file, shown.st_dev, shown.st_ino)
        if st.st_nlink > 1 or file.index is not None:  # none of an indexed file's names need be in upper
            self.table.add_link(file, st)
        return file

    def _another_name(self, file: File, parent: Directory, name: bytes, found: Found) -> None:
        if file.dead:
            # its last known name went, and here is one that was not known: no need for the descriptor any more
            file.let_go()
            file.at(found.dir, found.name)
        self.table.add_name(file, parent, name)

    # -- objects ----------------------------------------------------------------------------------------------

    def find(self, parent: Directory, name: bytes, start: int = 0) -> Found | None:
        """The object under a name, from the layers of `parent`. The first entry from the top decides."""
        layers = parent.layers
        for position in range(start, len(layers)) if len(layers) <= FEW else self._positions(parent, name, start):
            layer = layers[position]
            st = layer.stat(name)
            branch = layer.branch
            if branch.aufs and (name.startswith(marks.AUFS_PREFIX) or st is None):
                if layer.aufs_hides(name):
                    return None
                continue
            if st is None:
                continue
            kind = layer.kind(name, st)
            if kind is Kind.DIRECTORY:
                return self._directory(parent, position, name, st)
            if kind is Kind.WHITEOUT:
                return None
            return self._file(parent, position, name, st)
        return None

    def _positions(self, parent: Directory, name: bytes, start: int) -> Sequence[int]:
        """Where to look for a name among many layers: in upper, and from the first layer below on that has it.

        Lower branches do not change (else restack.py forgets what is known), so it is enough to list their directories
        once, after some looks into them.
        """
        end = len(parent.layers)
        if parent.first_below is None:
            parent.looks += 1
            if parent.looks == _LOOKS_BEFORE_LISTING:
                parent.first_below = self._list_below(parent)
        if parent.first_below is None:
            return range(start, end)
        above = end - len(parent.lowers)
        first = above + parent.first_below.get(name, end)
        return [*range(start, above), *range(max(start, first), end)]

    @staticmethod
    def _list_below(parent: Directory) -> dict[bytes, int] | None:
        """The names in the lower layers, each with the first of these that has it or hides it; None if there are too
        many."""
        first: dict[bytes, int] = {}
        for position, layer in enumerate(parent.lowers):
            for name in layer.names():
                first.setdefault(name, position)
                if layer.branch.aufs and name.startswith(marks.AUFS_PREFIX):
                    first.setdefault(name[len(marks.AUFS_PREFIX) :], position)
            if len(first) > _MOST_NAMES:
                return None
        return first

    def _file(self, parent: Directory, position: int, name: bytes, st: os.stat_result) -> Found:
        layer = parent.layers[position]
        branch = layer.branch
        if branch.is_upper:
            found = read_file_marks(layer, name)
            held = found.protection
            data = None
            if found.metacopy and S_ISREG(st.st_mode):
                data = self._data_below(parent, position, name, found.redirect)
            if not found.origin or self.origins is None:
                return Found(st, layer, name, data=data, protection=held)
            lower_st = self.origins.stat(found.origin)
            index = self._entry_of(found.origin, st) if lower_st is not None else None
            if index is None or self.index is None:
                return Found(st, layer, name, data=data, lower_st=lower_st, protection=held)
            return Found(st, self.index.dir, index, data=data, lower_st=lower_st, entry=index, protection=held)
        if st.st_nlink > 1 and self.index is not None:
            indexed = self._indexed(layer, name, st)
            if indexed is not None:
                return indexed
        if (branch.data_below or not branch.is_last) and S_ISREG(st.st_mode):
            found = read_file_marks(layer, name)
            if found.metacopy:
                return Found(st, layer, name, data=self._data_below(parent, position, name, found.redirect))
        return Found(st, layer, name)

    def _entry_of(self, origin: bytes, st: os.stat_result) -> bytes | None:
        """The index entry of a file in upper that has an origin and other links."""
        if self.index is None or st.st_nlink < 2:
            return None
        name = index_name(origin)
        entry = self.index.find(name)
        return name if entry is not None and entry.st_ino == st.st_ino else None

    def _indexed(self, layer: Dir, name: bytes, st: os.stat_result) -> Found | None:
        """What a lower file with several links has become, if another of its names was changed before."""
        assert self.index is not None
        assert self.origins is not None
        origin = self.origins.of(layer, name)
        if not origin:
            return None
        entry_name = index_name(origin)
        entry = self.index.find(entry_name)
        if entry is None or S_IFMT(entry.st_mode) != S_IFMT(st.st_mode):
            return None
        found = read_file_marks(self.index.dir, entry_name)
        data = (layer, name) if found.metacopy else None
        unlike = not _alike(entry, st)
        return Found(
            entry, self.index.dir, entry_name, data=data, lower_st=st, entry=entry_name,
            protection=found.protection, unlike_below=unlike,
        )  # fmt: skip

    def covered(self, parent: Directory, name: bytes) -> bool:
        """Whether a layer below upper shows something under the name, so that only a whiteout can hide it."""
        lowers = parent.lowers
        above = len(parent.layers) - len(lowers)
        many = len(lowers) > FEW
        for position in self._positions(parent, name, above) if many else range(above, len(parent.layers)):
            layer = parent.layers[position]
            st = layer.stat(name)
            if st is not None:
                return not layer.is_whiteout(name, st)
            if layer.aufs_hides(name):
                return False
        return False

    def _directory(self, parent: Directory, position: int, name: bytes, st: os.stat_result) -> Found:
        layer = parent.layers[position]
        top = layer.child(name)
        if layer.branch.is_last:
            return Found(st, layer, name, (top,))
        found = read_dir_marks(layer, name)
        top.xwhiteouts = found.xwhiteouts
        own_redirect = found.redirect if layer.branch.is_upper else None
        if found.opaque:
            return Found(st, layer, name, (top,), own_redirect, protection=found.protection)
        stack = [top]
        lower_st = None
        for base, real, below_st, xwhiteouts in self._below(parent, position, name, found.redirect, want_dir=True):
            part = base.child(real)
            part.xwhiteouts = xwhiteouts
            stack.append(part)
            lower_st = lower_st or below_st
        if not layer.branch.is_upper:
            lower_st = None  # the top itself is the topmost lower part
        return Found(st, layer, name, tuple(stack), own_redirect, lower_st=lower_st, protection=found.protection)

    def _data_below(
        self, parent: Directory, position: int, name: bytes, redirect: bytes | None
    ) -> tuple[Dir, bytes]:
        """Where the data of a metadata-only copy are. Raises EIO where they are nowhere."""
        layer = parent.layers[position]
        data = None
        for base, real, _, _ in self._below(parent, position, name, redirect, want_dir=False):
            data = (base, real)
        if data is None:
            log.error("%r in branch %r is a metadata-only copy whose data are in no branch", name, layer.branch.path)
            raise OSError(EIO, os.strerror(EIO), name)
        return data

    def _below(
        self, parent: Directory, position: int, name: bytes, redirect: bytes | None, *, want_dir: bool
    ) -> Iterator[Part]:
        layers = Layers(parent.layers, self.root.layers, self.data_layers, self.follow)
        return below(layers, parent.layers[position].branch.index, name, redirect, want_dir=want_dir)

    # -- listings ---------------------------------------------------------------------------------------------

    def listing(self, directory: Directory) -> dict[bytes, int]:
        """The names of a directory, each with the position of the layer whose entry wins."""
        if directory.dead:
            return {}
        layers = directory.layers
        if len(layers) == 1:
            return merge_listings([(0, layers[0].entries())])
        return merge_listings((position, layer.entries()) for position, layer in enumerate(layers))


def _alike(copy: os.stat_result, lower: os.stat_result) -> bool:
    """Whether a copy still is what it is a copy of, as far as a look tells."""
    return (copy.st_size, copy.st_mtime_ns, copy.st_mode, copy.st_uid, copy.st_gid) == (
        lower.st_size, lower.st_mtime_ns, lower.st_mode, lower.st_uid, lower.st_gid,
    )  # fmt: skip


def attributes(node: Node) -> os.stat_result:
    """lstat of the object; a metadata-only copy occupies the blocks of its data."""
    if node.is_dir:
        return node.stat()  # type: ignore[attr-defined,no-any-return]
    assert isinstance(node, File)
    st = node.stat()
    if node.data is None:
        return st
    directory, name = node.data
    return with_blocks(st, directory.lstat(name).st_blocks)


def with_blocks(st: os.stat_result, blocks: int) -> os.stat_result:
    """A copy of a stat result with another st_blocks."""
    names = (
        "st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_rdev",
    )  # fmt: skip
    return os.stat_result(tuple(st)[:10], {**{key: getattr(st, key) for key in names}, "st_blocks": blocks})


def link_count(node: Node, st: os.stat_result) -> int:
    """st_nlink as the union shows it: 1 (not known) for a merged directory, as in the kernel's overlayfs."""
    if node.is_dir:
        if node.dead:
            return 0
        return 1 if len(node.layers) > 1 else st.st_nlink  # type: ignore[attr-defined]
    assert isinstance(node, File)
    return max(0, st.st_nlink - node.hidden_links)
