"""A file system over real branches without a kernel's mount: the tests are its only caller.

Owns the branches' set-up for the tests of pyunion.fs. Needs root, as marks are trusted xattrs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from pyunion.branch import opening
from pyunion.branch.copyup import Terms
from pyunion.branch.dirs import DirCache
from pyunion.branch.work import Work
from pyunion.fs.filesystem import FileSystem, Settings
from pyunion.fs.nodes import Directory, File, Node
from pyunion.union.marks import TRUSTED


class Me(NamedTuple):
    """The caller of every request in these tests."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0o022


ME = Me()


class Bench:
    """A file system, its branches as paths, and shorthands for walking it."""

    def __init__(self, base: Path, fs: FileSystem) -> None:
        self.lower, self.upper, self.work = base / "lower", base / "upper", base / "work"
        self.fs = fs

    def node(self, path: str) -> Node:
        node: Node = self.fs.table.root
        for name in path.split("/"):
            assert isinstance(node, Directory)
            entry = self.fs.lookup.child(node, os.fsencode(name))
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = entry[0]
        node.lookups += 1  # as the kernel would hold it
        return node

    def file(self, path: str) -> File:
        node = self.node(path)
        assert isinstance(node, File)
        return node

    def directory(self, path: str) -> Directory:
        node = self.node(path) if path else self.fs.table.root
        assert isinstance(node, Directory)
        return node


Build = Callable[..., Bench]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Make the file system once the lower branch (tmp_path/lower) is filled."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:

        def make(cached_dirs: int = 100, **settings: object) -> Bench:
            cache = DirCache(cached_dirs)
            work_root = opening.lock_directory(bytes(tmp_path / "work"), stack)
            work_fd = opening.open_work(work_root, bytes(tmp_path / "work"), volatile=False)
            stack.callback(os.close, work_fd)
            upper = opening.open_upper(bytes(tmp_path / "upper"), cache, stack, TRUSTED)
            lowers = opening.open_lowers(
                [bytes(tmp_path / "lower")], cache, stack, first_index=1, xattr_prefix=TRUSTED, aufs=False
            )
            fs = FileSystem([upper, *lowers], Work(work_fd, Terms(sync=False, shares=False)), Settings(**settings))  # type: ignore[arg-type]
            stack.callback(fs.files.close_all)
            return Bench(tmp_path, fs)

        yield make
