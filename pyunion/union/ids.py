"""Which owners the union shows for those that a branch has, and which a branch gets for those that are asked for.

Owns the mappings (--uid-map, --gid-map, squashing) and the rule for ids that the daemon's user namespace does not have:
they are shown as the daemon's own, since the kernel lets nobody change an object whose owner has no id. The users and
groups that an ACL names are mapped as well; squashing is about owners, and leaves them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

# An ACL as an xattr (struct posix_acl_xattr_entry in linux/posix_acl_xattr.h): a version, then tag, permissions and id.
_ACL_VERSION_SIZE = 4
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER = 2
_ACL_GROUP = 8


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
        return self.named_shown(stored)

    def stored(self, shown: int) -> int:
        """The id that a branch gets; -1 (it stays as it is) where the union shows one for all."""
        if self.squash_to is not None:
            return -1
        return self.named_stored(shown)

    def named_shown(self, stored: int) -> int:
        """The id that the union shows for one that is no owner, but named in an ACL."""
        for entry in self.ranges:
            if 0 <= stored - entry.stored < entry.length:
                return entry.shown + stored - entry.stored
        return stored

    def named_stored(self, shown: int) -> int:
        """What an ACL in a branch names."""
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

    def acl_shown(self, acl: bytes) -> bytes:
        """An ACL of a branch as the union shows it."""
        return _map_acl(acl, self.uids.named_shown, self.gids.named_shown)

    def acl_stored(self, acl: bytes) -> bytes:
        """An ACL that was set in the union as a branch gets it."""
        return _map_acl(acl, self.uids.named_stored, self.gids.named_stored)


def _map_acl(acl: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """What is no ACL at all stays as it is; the branch's file system refuses it."""
    version, entries = acl[:_ACL_VERSION_SIZE], acl[_ACL_VERSION_SIZE:]
    if len(entries) % _ACL_ENTRY.size:
        return acl
    maps = {_ACL_USER: uid, _ACL_GROUP: gid}
    mapped = (
        _ACL_ENTRY.pack(tag, permissions, maps[tag](number) if tag in maps else number)
        for tag, permissions, number in _ACL_ENTRY.iter_unpack(entries)
    )
    return version + b"".join(mapped)


NOT_MAPPED = Owners()
