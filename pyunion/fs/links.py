"""Hard links of lower files: all names of one file stay one file, though only some of them were ever copied up.

Owns what has to be true in the index (pyunion/branch/index.py) and in upper before a name of such a file comes or
goes. Everything here is synchronous. Without an index the names of a lower file part company by their copies.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from pyunion.branch import marks, objects
from pyunion.branch.dirs import Dir
from pyunion.branch.index import Index
from pyunion.fs.nodes import Directory, File
from pyunion.union.origin import index_name

log = logging.getLogger(__name__)


class Links:
    """The indexed files of a mount; `directory` brings a directory into upper."""

    def __init__(self, index: Index | None, directory: Callable[[Directory], Dir]) -> None:
        self._index = index
        self._directory = directory

    @property
    def kept(self) -> bool:
        """Whether there is an index."""
        return self._index is not None

    def put(self, work_fd: int, file: File, staged: bytes, lower_links: int, origin: bytes) -> None:
        """Put a finished copy where all names of the lower file find it; the one that is changed gets a link too.

        Raises OSError with the file as it was; `staged` may be in the work directory still.
        """
        assert self._index is not None
        assert file.parent is not None
        self._directory(file.parent)
        before = file.dir, file.real, file.hidden_links
        names = lower_links - file.hidden_links
        entry = index_name(origin)
        self._index.put(work_fd, staged, entry, names - lower_links)
        file.index, file.lower_links = entry, lower_links
        file.dir, file.real, file.hidden_links = self._index.dir, entry, 1 - names
        try:
            self.name_in_upper(file, file.parent, file.name)
        except OSError:
            self._index.remove(entry)
            file.index = None
            file.dir, file.real, file.hidden_links = before
            raise

    def must_index(self, file: File) -> bool:
        """Whether one of the file's names cannot go before its copy is in the index, where the others find it."""
        return self.kept and not file.in_upper and file.key is not None

    def name_in_upper(self, file: File, parent: Directory, name: bytes) -> None:
        """Before a name of an indexed file changes: it may be one that only the index makes ours."""
        if file.index is None:
            return
        assert self._index is not None
        into = self._directory(parent)
        if into.stat(name) is not None:
            return
        names = file.stat().st_nlink - file.hidden_links
        with objects.keeping_times(into.fd()):
            marks.set_impure(into)
            self._index.count_from_lower(file.index, names - file.lower_links)
            self._index.link(file.index, into, name)
        file.hidden_links += 1

    def settle(self, file: File, parent: Directory, name: bytes) -> None:
        """When a name is met that only the index makes ours, and what is below it differs, give it its link: upper then
        shows the same file to those who do not read the index - a mount with index=off, or whoever takes upper as a
        layer."""
        try:
            self.name_in_upper(file, parent, name)
        except OSError as error:
            log.info("%r has no link in upper yet: %s", name, error.strerror)

    def before_change(self, file: File) -> None:
        """Store the count of an indexed file's names so that it stays true through the next link(2) or unlink(2)."""
        if file.index is not None and self._index is not None:
            self._index.count_from_upper(file.index, file.hidden_links)

    def after_unlink(self, file: File) -> None:
        """Without names an indexed file leaves the index; it goes on by a descriptor."""
        if file.index is None or self._index is None:
            return
        try:
            if file.stat().st_nlink > file.hidden_links:
                return
            if file.pin < 0:
                file.pin = os.open(file.real, objects.PIN, dir_fd=file.dir.fd())
            self._index.remove(file.index)
        except OSError as error:  # the name is gone all the same
            log.warning("%r stays in the index, perhaps without names: %s", file.index, error.strerror)
            return
        file.index = None
        file.hidden_links = 0
