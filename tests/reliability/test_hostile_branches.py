"""Branches that somebody has made to do harm: any names, kinds and marks, and trees deeper than anything should be.

Whatever a branch says, a request ends with an object of a branch or an errno, nothing outside of the branches is
opened, and the log takes no control characters from it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from pyunion.branch import opening
from pyunion.branch.dirs import DirCache
from pyunion.branch.handles import Origins
from pyunion.fs.filesystem import FileSystem, Settings
from pyunion.fs.nodes import Directory, File
from pyunion.union.marks import TRUSTED
from tests.fs.conftest import ME
from tests.harness.files import run
from tests.harness.union import Union
from tests.reliability.hostile import BRANCHES, Thing, has_control_characters
from tests.reliability.hostile import things as any_things

# Requests that are being watched: what they open, and which paths they name.
_watched: list[list[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listxattr", "os.getxattr", "os.scandir", "os.listdir"):
        path = arguments[0]
        if isinstance(path, str | bytes):
            _watched[-1].append(os.fsdecode(path))


sys.addaudithook(_audit)


def leads_nowhere_else(path: str) -> bool:
    """A path of the daemon's is one name, by itself or below a descriptor."""
    name = re.sub(r"^/proc/self/fd/\d+/?", "", path)
    return "/" not in name and name != ".."


class Walk:
    """Looks at everything that a union shows, as far as it lets itself be looked at."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.seen: set[tuple[int, int]] = set()
        self.data: set[bytes] = set()

    async def directory(self, directory: Directory, depth: int) -> None:
        names = set()
        with suppress(OSError):
            names = set(self.fs.lookup.listing(directory))
        for name in (*sorted(names), b"a", b"b", b"outside"):
            with suppress(OSError):
                entry = self.fs.lookup.child(directory, name)
                if entry is None:
                    continue
                node, attributes = entry
                self.seen.add((attributes.st_dev, attributes.st_ino))
                if isinstance(node, Directory):
                    assert depth < 40, "a redirect makes a tree without an end"
                    await self.directory(node, depth + 1)
                elif isinstance(node, File) and attributes.st_mode & 0o170000 == 0o100000:
                    fd = await self.fs.files.open(node, os.O_RDONLY, ME)
                    self.data.add(bytes(await self.fs.files.read(fd, 0, 100)))
                    self.fs.files.release(fd)


def all_inside(base: Path) -> Iterator[tuple[int, int]]:
    for number in range(BRANCHES):
        for where, directories, names in os.walk(os.fsencode(base / f"branch{number}")):
            for name in (b".", *directories, *names):
                status = os.lstat(os.path.join(where, name))
                yield status.st_dev, status.st_ino


def opened(base: Path, stack: ExitStack) -> FileSystem:
    """A read-only union of all branches, the topmost of which is an upper one; so every mark is read."""
    cache = DirCache(100)
    upper = opening.open_upper(bytes(base / "branch0"), cache, stack, TRUSTED, read_only=True)
    paths = [bytes(base / f"branch{number}") for number in range(1, BRANCHES)]
    lowers = opening.open_lowers(paths, cache, stack, first_index=1, xattr_prefix=TRUSTED, aufs=False, data_only=1)
    origins = Origins(lowers, stack)
    fs = FileSystem([upper, *lowers[:-1]], None, Settings(), origins, None, lowers[-1:])
    stack.callback(fs.files.close_all)
    return fs


@given(things=any_things)
async def test_nothing_that_a_branch_says_leads_out_of_it(things: list[Thing]) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        base = Path(name)
        (base / "outside").write_bytes(b"outside")
        for number in range(BRANCHES):
            (base / f"branch{number}").mkdir()
        for thing in things:
            thing.put(base)
        logging.getLogger("pyunion").addHandler(handler)
        stack.callback(logging.getLogger("pyunion").removeHandler, handler)
        fs = opened(base, stack)
        walk = Walk(fs)
        _watched.append([])
        try:
            await walk.directory(fs.table.root, 0)
        finally:
            named = _watched.pop()
        assert [path for path in named if not leads_nowhere_else(path)] == []
        assert walk.seen <= set(all_inside(base))
        assert b"outside" not in walk.data
        assert [text for text in messages if has_control_characters(text)] == []


def test_the_watch_notices_what_leads_out() -> None:
    assert all(map(leads_nowhere_else, ("a", "/proc/self/fd/7", "/proc/self/fd/7/a", "...")))
    assert not any(map(leads_nowhere_else, ("../a", "/etc", "/proc/self/fd/7/a/b", "/proc/self/fd/7/..", "..")))


@pytest.mark.parametrize("depth", [10_000])
def test_a_tree_of_ten_thousand_levels(pyunion: Union, depth: int) -> None:
    pyunion.watch_lowers = pyunion.compare_with_kernel = False  # their walks are recursive
    held: list[int] = []
    try:
        _dig(pyunion.low, depth)
        pyunion.mount()
        bottom = _descend(pyunion.at, depth)
        held.append(bottom)
        assert os.listdir(bottom) == ["leaf"]
        os.chmod("leaf", 0o600, dir_fd=bottom)  # brings up all that is above it
        os.mkdir("new", dir_fd=bottom)
        os.close(held.pop())
        pyunion.unmount()
        below = _descend(pyunion.top, depth)
        assert sorted(os.listdir(below)) == ["leaf", "new"]
        os.close(below)
    finally:
        for fd in held:
            os.close(fd)
        try:
            pyunion.clean_up()
        finally:
            run("rm", "-rf", pyunion.low, pyunion.top)


def _dig(top: Path, depth: int) -> None:
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def _descend(top: Path, depth: int) -> int:
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd
