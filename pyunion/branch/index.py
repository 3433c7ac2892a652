"""WORK/index: where the copy of a hard-linked lower file is found by the file's handle, as the kernel keeps it.

Owns the index directory and the count of links in `nlink`. So all names of a lower file stay one file, though only some
of them were ever copied up. Which files are indexed is pyunion/fs/copier.py.
"""

from __future__ import annotations

import os
from errno import EEXIST

from pyunion.branch import objects
from pyunion.branch.dirs import Branch, Dir
from pyunion.union import marks, origin


class Index:
    """The index of one mount. Its entries are links of files in upper."""

    def __init__(self, branch: Branch) -> None:
        self.dir: Dir = branch.root
        self._nlink = (branch.xattr_prefix or b"") + marks.NLINK

    def find(self, name: bytes) -> os.stat_result | None:
        return self.dir.stat(name)

    def put(self, work_fd: int, staged: bytes, name: bytes, more_names: int) -> None:
        """Rename a finished copy from the work directory to its place, with its count: see count_from_lower()."""
        objects.set_xattr(work_fd, staged, self._nlink, origin.from_lower(more_names))
        os.rename(staged, name, src_dir_fd=work_fd, dst_dir_fd=self.dir.fd())

    def link(self, name: bytes, into: Dir, at: bytes) -> None:
        """Give the indexed file a name in upper."""
        os.link(name, at, src_dir_fd=self.dir.fd(), dst_dir_fd=into.fd(), follow_symlinks=False)

    def remove(self, name: bytes) -> None:
        os.unlink(name, dir_fd=self.dir.fd())

    def hidden_links(self, name: bytes, st: os.stat_result, lower_links: int) -> int:
        """How many links of the upper inode, the index entry among them, are no names in the union; negative where
        the union has names that are not in upper. One, the entry itself, where no count is stored."""
        value = objects.get_mark(self.dir.fd(), name, self._nlink)
        offset = None if value is None else origin.link_offset(value, st.st_nlink, lower_links)
        return 1 if offset is None else -offset

    def count_from_upper(self, name: bytes, hidden_links: int) -> None:
        """Before upper's links and the union's names change together."""
        objects.set_xattr(self.dir.fd(), name, self._nlink, origin.from_upper(-hidden_links))

    def count_from_lower(self, name: bytes, more_names: int) -> None:
        """Before a name that is in the union already gets its link in upper."""
        objects.set_xattr(self.dir.fd(), name, self._nlink, origin.from_lower(more_names))


def make_index_directory(work_root: int) -> None:
    """Make WORK/index if need be, with the mode that the kernel gives it."""
    try:
        os.mkdir(b"index", 0, dir_fd=work_root)
    except OSError as error:
        if error.errno != EEXIST:
            raise


def open_index_directory(work_root: int) -> int:
    """A descriptor of WORK/index."""
    return os.open(b"index", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_root)
