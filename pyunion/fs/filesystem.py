"""The file system: one object that holds its parts together. It is what the FUSE adapter and the tests use.

Owns the wiring only. `build` makes it from opened branches; each part's module says what the part does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index
from pyunion.branch.marks import read_protection
from pyunion.branch.work import Work
from pyunion.fs.attributes import Attributes
from pyunion.fs.callers import Identity
from pyunion.fs.copier import Copier
from pyunion.fs.create import Create
from pyunion.fs.files import OpenFiles
from pyunion.fs.listing import Listings
from pyunion.fs.lookup import Lookup
from pyunion.fs.nodes import Directory, File, Node, Table
from pyunion.fs.rehearsal import Rehearsal
from pyunion.fs.remove import Remove
from pyunion.fs.rename import Rename
from pyunion.fs.restack import Restacking, Stale
from pyunion.fs.waiting import Question, Unanswered
from pyunion.union.ids import NOT_MAPPED, Owners
from pyunion.union.numbers import Numbers


class Settings(NamedTuple):
    """How the union behaves, as far as the user chooses or the branches allow."""

    redirect_dir: bool = True
    follow_redirects: bool = True
    metacopy: bool = False
    writeback: bool = True
    passthrough: bool = True  # rather than writeback, where the kernel has both
    passthrough_lower: bool = False  # of lower files as well, although copy_up moves their data
    opens_later: bool = False  # lower files get a descriptor when it is needed: we may open whatever they hold
    noatime: bool = False  # reading moves no access times in upper
    sync: bool = True  # copies are on disk before they appear, fsync reaches the branch
    rename_whiteout: bool = True
    switch_ids: bool = True  # new objects can be made in the caller's name
    xattr_prefix: bytes = b"trusted.overlay."
    owners: Owners = NOT_MAPPED


def _number(upper: Branch | None, lowers: Sequence[Branch], data: Sequence[Branch]) -> bool:
    """Give the branches their places; whether the marks of one count that did not before."""
    count = False
    for number, branch in enumerate((*lowers, *data)):
        branch.index = number + (upper is not None)
    for branch in lowers[:-1]:
        count = count or branch.is_last
        branch.is_last = False
    # A bottom branch that was none goes on to have its marks read: a metadata-only copy in it has lost its data.
    lowers[-1].data_below = bool(data)
    return count


class FileSystem:
    """The parts of one union, each with a few operations."""

    def __init__(
        self,
        branches: Sequence[Branch],
        work: Work | None,
        settings: Settings,
        origins: Origins | None = None,
        index: Index | None = None,
        data_branches: Sequence[Branch] = (),
    ) -> None:
        upper = branches[0] if branches[0].is_upper else None
        root = Directory(None, b"", tuple(branch.root for branch in branches))
        if upper is not None:
            root.protection = read_protection(upper.root.fd(), b".", upper)
        self.cache: DirCache = branches[0].cache
        self.name_max = os.fstatvfs(root.layers[0].fd()).f_namemax
        self.settings = settings
        stats = [os.fstat(branch.root.fd()) for branch in (*branches, *data_branches)]
        devices = [st.st_dev for st in stats]
        numbers = Numbers(None, devices) if upper is None else Numbers(devices[0], devices[1:])
        # what stat shows for the root, whose node number is always 1
        self.root_number = numbers.of(devices[0], stats[0].st_ino) or numbers.make_up()
        self.table = Table(root, numbers)
        data_layers = [branch.root for branch in data_branches]
        self.lookup = Lookup(self.table, data_layers, origins, index, settings.follow_redirects)
        self.copier = Copier(self.table, upper, work, origins, index, settings.metacopy)
        if work is not None:
            self.lookup.settle = self.copier.links.settle
        self.files = OpenFiles(
            self.copier,
            settings.owners.gids,
            writeback=settings.writeback,
            sync=settings.sync,
            noatime=settings.noatime,
            pass_lower=settings.passthrough_lower,
            opens_later=settings.opens_later,
        )
        self.listings = Listings(self.lookup)
        self.attributes = Attributes(self.copier, settings.xattr_prefix, settings.owners)
        identity = Identity(switch=settings.switch_ids, owners=settings.owners)
        self.create = Create(self.table, self.lookup, self.copier, identity)
        self.remove = Remove(self.table, self.lookup, self.copier)
        self.rename = Rename(
            self.table, self.lookup, self.copier, self.remove,
            redirects=settings.redirect_dir, rename_whiteout=settings.rename_whiteout,
        )  # fmt: skip

    @property
    def lowers(self) -> list[Branch]:
        """The lower branches that are merged, topmost first."""
        return [layer.branch for layer in self.table.root.lowers]

    @property
    def data_branches(self) -> list[Branch]:
        """Those below them that hold nothing but data."""
        return [layer.branch for layer in self.lookup.data_layers]

    def rehearsal(self, lowers: Sequence[Branch], *, changed_outside: bool = False) -> Iterator[list[Question]]:
        """What restack() with the same arguments will ask of branches that may not answer and that is not known, step
        by step: other requests may come between two steps. Changes nothing."""
        rehearsal = Rehearsal(self.table, self.lookup, self._tops(lowers), changed_outside=changed_outside)
        while rehearsal.goes_on:
            with self._numbered(lowers) as every:
                questions = rehearsal.step(every=changed_outside or every)
            yield questions

    def restack(self, lowers: Sequence[Branch], origins: Origins | None, *, changed_outside: bool = False) -> Stale:
        """Merge these branches below upper from now on, some of them new; the others keep their order or not. No
        copy_up may be under way. `origins` are theirs. Returns what the kernel has to be told."""
        self.table.epoch += 1
        self.files.unopened.open_all()  # while they are where they were
        before = self.lowers
        every = self._number(lowers) or changed_outside
        restacking = Restacking(self.table, self.lookup, every=every, changed_outside=changed_outside)
        stale = restacking.run(self._tops(lowers))
        with suppress(OSError, Unanswered):  # as long as it does not say so, what was true before
            self.name_max = self.space().f_namemax
        if origins is not self.lookup.origins:
            self.lookup.origins, old = origins, self.lookup.origins
            self.copier.origins = origins
            if old is not None:
                old.close()
        for branch in before:
            if branch not in lowers:
                self.table.remove_branch(branch)
        return stale

    def _tops(self, lowers: Sequence[Branch]) -> list[Dir]:
        """The layers of the root with these lower branches."""
        tops = [layer for layer in self.table.root.layers if layer.branch.is_upper]
        return [*tops, *(branch.root for branch in lowers)]

    def _number(self, lowers: Sequence[Branch]) -> bool:
        """Give the branches their places; whether all names have to be looked up again because of that."""
        before = self.lowers
        stay = [branch for branch in before if branch in lowers]
        moved = stay != [branch for branch in lowers if branch in before]
        return _number(self.copier.upper, lowers, self.data_branches) or moved

    @contextmanager
    def _numbered(self, lowers: Sequence[Branch]) -> Iterator[bool]:
        """The same for a moment."""
        branches = {*self.lowers, *lowers, *self.data_branches}
        places = [(branch, branch.index, branch.is_last, branch.data_below) for branch in branches]
        try:
            yield self._number(lowers)
        finally:
            for branch, index, is_last, data_below in places:
                branch.index, branch.is_last, branch.data_below = index, is_last, data_below

    def space(self) -> os.statvfs_result:
        """statvfs(3) of the topmost branch."""
        return self.table.root.layers[0].ask(os.fstatvfs)

    def directory(self, ino: int) -> Directory:
        """The directory node of a number that the kernel has a reference to."""
        node = self.table.nodes[ino]
        assert isinstance(node, Directory)
        return node

    def file(self, ino: int) -> File:
        """The node, other than a directory's, of a number that the kernel has a reference to."""
        node = self.table.nodes[ino]
        assert isinstance(node, File)
        return node

    def node(self, ino: int) -> Node:
        return self.table.nodes[ino]
