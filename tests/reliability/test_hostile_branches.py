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
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyunion.branch import opening
from pyunion.branch.dirs import DirCache
from pyunion.branch.handles import Origins
from pyunion.fs.filesystem import FileSystem, Settings
from pyunion.fs.nodes import Directory, File
from pyunion.union.marks import TRUSTED
from tests.fs.conftest import ME
from tests.harness.files import run
from tests.harness.union import Union

BRANCHES = 4
_HAS_CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]").search
# Requests that are being watched: what they open, and which paths they name.
_watched: list[list[str]] = []


class Thing(NamedTuple):
    """An entry of a branch with its marks."""

    branch: int
    path: bytes
    kind: str
    marks: dict[bytes, bytes]

    def put(self, base: Path) -> None:
        path = os.fsencode(base / f"branch{self.branch}") + b"/" + self.path
        with suppress(OSError):  # something that was made before is in the way
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _MAKERS[self.kind](path)
        for mark, value in self.marks.items():
            with suppress(OSError):  # only files and directories have some kinds
                os.setxattr(path, b"trusted.overlay." + mark, value, follow_symlinks=False)


def _file(path: bytes) -> None:
    with open(path, "xb") as file:
        file.write(b"inside")


_MAKERS: dict[str, Any] = {
    "file": _file,
    "empty": lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
    "directory": os.mkdir,
    "whiteout": lambda path: os.mknod(path, 0o20000, 0),
    "device": lambda path: os.mknod(path, 0o20000, os.makedev(1, 3)),
    "fifo": os.mkfifo,
    "out": lambda path: os.symlink("../outside", path),
    "far out": lambda path: os.symlink("/etc", path),
    "itself": lambda path: os.symlink(os.path.basename(path), path),
}

_names = st.sampled_from([b"a", b"b", b"c", b".wh.a", b"...", b"\xff\n\x1b", b"n" * 255])
_paths = st.lists(_names, min_size=1, max_size=3).map(b"/".join)
_redirects = st.one_of(
    _names,
    _paths.map(lambda path: b"/" + path),
    st.sampled_from([b"", b"/", b"..", b"/..", b"../outside", b"/../outside", b"/a/../../outside", b"."]),
    st.sampled_from([b"a/b", b"//a", b"/a/b/", b"/outside", b"a\0b", b"/etc", b"x" * 300]),
    st.binary(max_size=20),
)
_anything = st.binary(max_size=40)
_marks = st.fixed_dictionaries(
    {},
    optional={
        b"redirect": _redirects,
        b"metacopy": st.one_of(st.just(b""), _anything),
        b"opaque": st.one_of(st.sampled_from([b"y", b"x", b"n"]), _anything),
        b"origin": st.one_of(_anything, st.binary(max_size=30).map(lambda tail: b"\x00\xfb\x1d\x00\x01" + tail)),
        b"whiteout": _anything,
        b"protattr": _anything,
        b"nlink": st.one_of(st.sampled_from([b"U+999999999999", b"L-9", b"U"]), _anything),
    },
)
_things = st.lists(
    st.builds(Thing, st.integers(0, BRANCHES - 1), _paths, st.sampled_from(list(_MAKERS)), _marks), max_size=14
)


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


@given(things=_things)
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
        assert [text for text in messages if _HAS_CONTROL_CHARACTERS(text)] == []


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
