"""Listings of directories, and the positions in them that telldir(3) and seekdir(3) have.

A name keeps its position for as long as the kernel knows the directory, whoever lists it and whatever comes and goes
meanwhile. So a listing needs no open directory: a position and the node say where it goes on. Owns these positions.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from errno import EMFILE

from pyunion.fs.lookup import Lookup, attributes
from pyunion.fs.nodes import Directory, Listing, Node
from pyunion.fs.waiting import Unanswered

Entry = tuple[bytes, Node, os.stat_result, int]  # name, node, attributes, position after the entry
DOTS = 2  # the positions after `.` and `..`


def as_far_as_known(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Entries up to the first that a branch has to be asked for, or for which there is no descriptor left: the kernel
    asks for the others. If that is the very first, raises what it was, Unanswered or OSError."""
    begun = False
    try:
        for entry in entries:
            yield entry
            begun = True
    except (Unanswered, OSError) as error:
        if not begun or (isinstance(error, OSError) and error.errno != EMFILE):
            raise


class Listings:
    """Lists directories of the mount."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def entries(self, directory: Directory, offset: int) -> Iterator[Entry]:
        """The entries after a position, `.` and `..` first. Branches are listed anew for position 0 only; what has gone
        since then is left out."""
        if offset == 0 or directory.listing is None:
            directory.listing = self._list(directory)
        if offset == 0:
            yield b".", directory, attributes(directory), 1
        if offset <= 1:
            parent = directory.parent or directory
            yield b"..", parent, attributes(parent), 2
        child = self._lookup.child
        listing = directory.listing
        for number in range(bisect_right(listing.positions, offset), len(listing.names)):
            name = listing.names[number]
            # what was below may have come to upper meanwhile
            entry = child(directory, name, 0 if directory.in_upper else listing.layers[number])
            if entry is not None:
                yield name, entry[0], entry[1], listing.positions[number]

    def _list(self, directory: Directory) -> Listing:
        """The names in the order of their positions: those that had one before first, and then the new ones."""
        winners = self._lookup.listing(directory)
        before = directory.listing
        if before is None:
            end = DOTS + 1 + len(winners)
            return Listing(list(winners), list(range(DOTS + 1, end)), list(winners.values()), end)
        names, positions = [], []
        new = dict(winners)
        for name, position in zip(before.names, before.positions, strict=True):
            if new.pop(name, None) is not None:
                names.append(name)
                positions.append(position)
        end = before.end + len(new)
        positions += range(before.end, end)
        names += new
        return Listing(names, positions, [winners[name] for name in names], end)
