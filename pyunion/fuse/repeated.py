"""Listings that were just given, for the next process that asks for the same: those that walk a tree side by side do.

Only of directories in lower branches, where nothing changes but by a request, or when the branches are changed or the
kernel forgets: whatever may do so ends all that is kept. Owns what is kept, and that each reply given again counts as a
reference to the nodes in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyunion.fs.nodes import Node, Table
from pyunion.fuse.layout import Op

# Requests that change nothing which a listing shows, nor bring about that something is forgotten.
ONLY_LOOK = frozenset({
    Op.LOOKUP, Op.GETATTR, Op.READLINK, Op.READ, Op.STATFS, Op.RELEASE, Op.GETXATTR, Op.LISTXATTR, Op.OPENDIR,
    Op.READDIRPLUS, Op.RELEASEDIR, Op.STATX,
})  # fmt: skip
_MOST = 64  # replies, of up to 32 KiB as the C library asks for them

Key = tuple[int, int, int]  # number of the directory, position, room


class Repeated:
    """The replies of one session."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._epoch = table.epoch
        self._kept: dict[Key, tuple[bytes, Sequence[Node]]] = {}

    def get(self, key: Key) -> bytes | None:
        """The reply that was given last, if it would be the same now."""
        if self._epoch != self._table.epoch:
            self._kept.clear()
            self._epoch = self._table.epoch
        reply, nodes = self._kept.get(key, (None, ()))
        for node in nodes:
            node.lookups += 1
        return reply

    def clear(self) -> None:
        """Let go of all, and of the nodes."""
        self._kept.clear()

    def keep(self, key: Key, reply: bytes, nodes: Sequence[Node]) -> None:
        """A reply that was just made, after get() had none, and the nodes that it refers to."""
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[key] = reply, nodes
