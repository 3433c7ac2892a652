"""Who wins: the one rule by which layers become a union, used by look-up and listing alike.

From the top layer down, the first entry wins. A whiteout hides everything below it; so does any entry that is
not a directory. Directories merge until one of them is opaque or something that is not a directory comes.
Knows no file systems: what an entry is, is told by a Kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from stat import S_IFCHR, S_IFDIR, S_IFMT


class Kind(IntEnum):
    """What a layer has under a name, as far as merging cares."""

    WHITEOUT = 0
    DIRECTORY = 1
    OTHER = 2


def kind_of(mode: int, rdev: int) -> Kind:
    """The kind of an object by st_mode and st_rdev; whiteouts in xattr form are the caller's to tell."""
    form = S_IFMT(mode)
    if form == S_IFDIR:
        return Kind.DIRECTORY
    if form == S_IFCHR and rdev == 0:
        return Kind.WHITEOUT
    return Kind.OTHER


def merge_listings(layers: Iterable[tuple[int, Iterable[tuple[bytes, Kind]]]]) -> dict[bytes, int]:
    """The names of a merged directory, each with the number of the layer whose entry wins.

    `layers` come topmost first, each as (number, entries).
    """
    winners: dict[bytes, int] = {}
    hidden: set[bytes] = set()
    for number, entries in layers:
        for name, kind in entries:
            if name in winners or name in hidden:
                continue
            if kind is Kind.WHITEOUT:
                hidden.add(name)
            else:
                winners[name] = number
    return winners
