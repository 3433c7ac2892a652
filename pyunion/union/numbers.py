"""Inode numbers of the union: those of the branches, made unique where these are on several file systems.

Owns the rule of the kernel's xino: the bits above say which file system a number is from, upper's being 0 and the
others following in the order of the branches. So a number is the same in each mount of the same branches, ours or the
kernel's.
Knows no objects and makes no calls.
"""

from __future__ import annotations

from collections.abc import Iterable

_NESTED_SHIFT = 48  # of file systems inside a branch, such as btrfs subvolumes, of which the start does not know


class Numbers:
    """Turns device and inode number of a branch's object into a number for the union."""

    def __init__(self, upper: int | None, lowers: Iterable[int]) -> None:
        """The devices of the branches; without an upper branch its place stays free."""
        devices = list(dict.fromkeys([upper, *lowers]))
        together = len(devices) == (2 if upper is None else 1)
        self._places = {device: 0 if together else place for place, device in enumerate(devices)}
        # One bit more than the places take: numbers that have it are from no branch.
        self._free_bits = 64 - (1 if together else (len(devices) - 1).bit_length() + 1)
        self._nested: dict[int, int] = {}
        self._made_up = 0

    def of(self, device: int, ino: int) -> int | None:
        """The number; None where the branch's is too big, as of file systems that use the high bits themselves."""
        place = self._places.get(device)
        if place is not None:
            return None if ino >> self._free_bits else ino | place << self._free_bits + 1
        nested = self._nested.setdefault(device, len(self._nested) + 1) << _NESTED_SHIFT
        if ino >> _NESTED_SHIFT or nested >> self._free_bits:
            return None
        return 1 << self._free_bits | nested | ino

    def make_up(self) -> int:
        """A number that no object of a branch has, and none that was made up before."""
        self._made_up += 1
        return 1 << self._free_bits | self._made_up
