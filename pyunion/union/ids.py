"""Which owners the union shows for those that a branch has, and which a branch gets for those that are asked for.

Owns the mappings (--uid-map, --gid-map, squashing) and two rules for ids without a counterpart. Ids outside of the
mappings are treated as by an idmapped mount (mount_setattr(2)): nobody has them, and nothing can be given to them,
unless the mapping says that they are as stored. Ids that the daemon's user namespace does not have are shown as the
daemon's own, since the kernel lets nobody change an object whose owner has no id. Mapped as well are the users and
groups that an ACL names, and the root user that file capabilities are for; squashing is about owners, and leaves
these.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EINVAL, EOVERFLOW
from typing import NamedTuple

# An owner that is none: the kernel shows it as the overflow id, and lets nobody change what belongs to it.
NO_ID = 0xFFFFFFFF
# The same in an ACL, where the kernel takes NO_ID for a mistake: the last number that it takes, which nobody has.
_NOBODY_IN_ACL = 0xFFFFFFFE

# An ACL as an xattr (struct posix_acl_xattr_entry in linux/posix_acl_xattr.h): a version, then tag, permissions and id.
_ACL_VERSION_SIZE = 4
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER = 2
_ACL_GROUP = 8

# File capabilities as an xattr (linux/capability.h): revision and flags, two pairs of sets; in revision 3 also the id
# of the root user that they are for, which in revision 2 is the real one.
_CAPS = struct.Struct("<I16s")
_CAPS_OF_ROOT = struct.Struct("<I16sI")
_REVISION_MASK, _REVISION_2, _REVISION_3 = 0xFF000000, 0x02000000, 0x03000000


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
    others_as_stored: bool = False  # ids outside of the ranges are what they are, and not nobody's

    def shown(self, stored: int) -> int:
        """The id that the union shows for an owner; NO_ID outside of the mapping."""
        if self.squash_to is not None:
            return self.squash_to
        if stored == self.overflow:
            return self.own
        return self.named_shown(stored)

    def stored(self, shown: int) -> int:
        """The id that a branch gets for an owner; -1 (it stays as it is) where the union shows one for all. Raises
        EOVERFLOW outside of the mapping."""
        if self.squash_to is not None:
            return -1
        stored = self.named_stored(shown)
        if stored == NO_ID:
            raise OSError(EOVERFLOW, f"the id {shown} is in no range of the mapping")
        return stored

    def named_shown(self, stored: int) -> int:
        """The id that the union shows for one that an object names otherwise; NO_ID outside of the mapping."""
        for entry in self.ranges:
            if 0 <= stored - entry.stored < entry.length:
                return entry.shown + stored - entry.stored
        return stored if self._keeps_others else NO_ID

    def named_stored(self, shown: int) -> int:
        """What an object in a branch names; NO_ID outside of the mapping."""
        for entry in self.ranges:
            if 0 <= shown - entry.shown < entry.length:
                return entry.stored + shown - entry.shown
        return shown if self._keeps_others else NO_ID

    @property
    def _keeps_others(self) -> bool:
        return self.others_as_stored or not self.ranges

    def named_in_acl(self, stored: int) -> int:
        """As named_shown, for an ACL."""
        shown = self.named_shown(stored)
        return _NOBODY_IN_ACL if shown == NO_ID else shown


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
        return _map_acl(acl, self.uids.named_in_acl, self.gids.named_in_acl)

    def acl_stored(self, acl: bytes) -> bytes:
        """An ACL that was set in the union as a branch gets it. Raises EINVAL for ids outside of the mappings."""
        return _map_acl(acl, _required(self.uids.named_stored), _required(self.gids.named_stored))

    def capabilities_shown(self, value: bytes) -> bytes:
        """File capabilities of a branch as the union shows them: for NO_ID as their root they count for nobody."""
        return _map_capabilities(value, self.uids.named_shown) if self.uids.ranges else value

    def capabilities_stored(self, value: bytes) -> bytes:
        """File capabilities that were set in the union as a branch gets them. Raises EINVAL for a root outside of the
        mapping."""
        return _map_capabilities(value, _required(self.uids.named_stored)) if self.uids.ranges else value


def _required(stored: Callable[[int], int]) -> Callable[[int], int]:
    def required(shown: int) -> int:
        number = stored(shown)
        if number == NO_ID:
            raise OSError(EINVAL, f"the id {shown} is in no range of the mapping")
        return number

    return required


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


def _map_capabilities(value: bytes, uid: Callable[[int], int]) -> bytes:
    """As the kernel on an idmapped mount (cap_convert_nscap), which knows revision 3 only. What is neither stays as it
    is, and counts for nobody."""
    root = 0
    if len(value) == _CAPS_OF_ROOT.size:
        magic, sets, root = _CAPS_OF_ROOT.unpack(value)
        revision = _REVISION_3
    elif len(value) == _CAPS.size:
        magic, sets = _CAPS.unpack(value)
        revision = _REVISION_2
    else:
        return value
    if magic & _REVISION_MASK != revision:
        return value
    return _CAPS_OF_ROOT.pack(magic & ~_REVISION_MASK | _REVISION_3, sets, uid(root))


NOT_MAPPED = Owners()
