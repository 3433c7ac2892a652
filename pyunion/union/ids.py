"""Which owners the union shows for those that a branch has, and which a branch gets for those that are asked for.

Owns the mappings (--uid-map, --gid-map, squashing) and the rule for ids that the daemon's user namespace does not have:
they are shown as the daemon's own, since the kernel lets nobody change an object whose owner has no id.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """`length` ids from `shown` on in the union are those from `stored` on in the branches (user_namespaces(7))."""

    shown: int
    stored: int
    length: int


class Mapping(NamedTuple):
    """One kind of ids, users or groups."""

    ranges: tuple[Range, ...] = ()
    squash_to: int | None = None  # show all as this one
    overflow: int | None = None  # what stands for an id that our user namespace does not have; None: it has all
    own: int = 0  # shown instead

    def shown(self, stored: int) -> int:
        """The id that the union shows."""
        if self.squash_to is not None:
            return self.squash_to
        if stored == self.overflow:
            return self.own
        for entry in self.ranges:
            if 0 <= stored - entry.stored < entry.length:
                return entry.shown + stored - entry.stored
        return stored

    def stored(self, shown: int) -> int:
        """The id that a branch gets; -1 (it stays as it is) where the union shows one for all."""
        if self.squash_to is not None:
            return -1
        for entry in self.ranges:
            if 0 <= shown - entry.shown < entry.length:
                return entry.stored + shown - entry.shown
        return shown


AS_STORED = Mapping()


class Owners(NamedTuple):
    """Users and groups."""

    uids: Mapping = AS_STORED
    gids: Mapping = AS_STORED

    @property
    def all_as_stored(self) -> bool:
        return all(not ids.ranges and ids.squash_to is None and ids.overflow is None for ids in self)


NOT_MAPPED = Owners()
