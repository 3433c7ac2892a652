"""An upper branch or a layer as the list of what an OCI layer says: objects, whiteouts, opaque directories.

Owns the order (by name, directories before what is in them) and how overlayfs's marks become those of OCI image layers
(image-spec, layer.md): a directory that was moved is listed whole, as OCI knows no redirects, and a metadata-only copy
with its data. Reads metadata only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from stat import S_ISSOCK
from typing import NamedTuple

from pyunion.branch.dirs import Dir
from pyunion.errors import PyunionError
from pyunion.layers.tree import Entry, Tree
from pyunion.union import marks
from pyunion.union.merge import Kind


class Item(NamedTuple):
    """One member of a layer."""

    path: bytes  # without a leading slash
    entry: Entry | None  # None: an empty file whose name is the mark


class _Place(NamedTuple):
    path: bytes
    entry: Entry
    whole: bool  # all that the union shows there, not only what its topmost part has


def layer_items(tree: Tree) -> Iterator[Item]:
    """What the topmost branch of a tree says. Raises PyunionError for what cannot be said in an OCI layer, OSError."""
    todo: list[_Place | Item] = [_Place(b"", tree.root_entry(), False)]
    while todo:
        place = todo.pop()
        if isinstance(place, Item):
            yield place
            continue
        tree.trim()
        if place.path:
            yield Item(place.path, place.entry)
        found = list(_below(tree, place))
        todo += reversed(found)


def _below(tree: Tree, place: _Place) -> Iterator[_Place | Item]:
    """What comes after a directory: its marks, then its entries by name."""
    entry, top = place.entry, place.entry.parts[0]
    whole = place.whole or entry.redirect is not None
    if whole and len(entry.parts) == 1 and entry.redirect is not None and not entry.opaque:
        raise PyunionError(
            f"{_shown(top, b'')} was moved here, and what is below it is in none of the lower branches; name those "
            "that it was made with by --lower"
        )
    if not place.whole and (entry.opaque or whole) and place.path:
        yield Item(os.path.join(place.path, marks.AUFS_OPAQUE), None)
    names = ((name, Kind.OTHER) for name in tree.names(entry.parts)) if whole else top.entries()
    for name, kind in sorted(names):
        path = os.path.join(place.path, name)
        if kind is Kind.WHITEOUT:
            yield Item(os.path.join(place.path, marks.AUFS_PREFIX + name), None)
            continue
        if name.startswith(marks.AUFS_PREFIX):
            raise PyunionError(f"{_shown(top, name)} has a name that is a mark in an OCI layer; rename or remove it")
        below = tree.child(entry.parts, name)
        if below is None or S_ISSOCK(below.st.st_mode):  # a socket is nothing without its program, and tar has none
            continue
        if below.metacopy and below.data is None:
            raise PyunionError(
                f"{_shown(below.dir, name)} has its metadata only, and its data are in none of the lower branches; "
                "name those that it was made with by --lower"
            )
        yield _Place(path, below, whole) if below.is_dir else Item(path, below)


def _shown(directory: Dir, name: bytes) -> str:
    names = [name] if name else []
    here: Dir | None = directory
    while here is not None and here.parent is not None:
        names.append(here.name)
        here = here.parent
    return os.fsdecode(os.path.join(directory.branch.path, *reversed(names)))
