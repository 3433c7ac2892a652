"""The language of the oracle: branch contents and operations as values, how to generate and how to carry out.

An operation's result is a value too, so two file systems agree when they give equal results. Names are few, so
that operations meet. Knows nothing of unions: it acts below any directory.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st

from tests.harness.files import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    make_opaque,
    renameat2,
    write,
)


class Thing(NamedTuple):
    """What a branch holds under a path before anything is mounted.

    Whiteouts are not among them: where they hide nothing, the kernel lists names that it does not find. They come
    from operations, as in real branches.
    """

    kind: str
    path: str

    def put(self, branch: Path) -> None:
        """Make it, unless something made before is in the way."""
        with contextlib.suppress(OSError):
            (branch / self.path).parent.mkdir(parents=True, exist_ok=True)
            _MAKERS[self.kind](branch / self.path)


def _make_file(path: Path) -> None:
    if not path.exists():
        write(path, f"{path.parent.name}/{path.name}", mode=0o644)


def _make_symlink(path: Path) -> None:
    path.symlink_to("a/b")


_MAKERS: dict[str, Callable[[Path], None]] = {
    "file": _make_file,
    "directory": Path.mkdir,
    "opaque": make_opaque,
    "symlink": _make_symlink,
    "fifo": os.mkfifo,
}


class Op(NamedTuple):
    """One operation on paths relative to a union's root."""

    name: str
    paths: tuple[str, ...]
    value: int = 0

    def run(self, root: Path) -> object:
        """Its result, or the name of the errno it failed with."""
        try:
            return _ACTIONS[self.name](*(root / path for path in self.paths), self.value)
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def _open(path: Path, flags: int, data: bytes) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)
    try:
        return os.write(fd, data) if data else os.fstat(fd).st_size
    finally:
        os.close(fd)


def _utime(path: Path, value: int) -> int:
    os.utime(path, ns=(value, value * 10**9 + 7), follow_symlinks=False)
    return path.lstat().st_mtime_ns


def _chown(path: Path, value: int) -> tuple[int, int]:
    os.chown(path, value, value + 1, follow_symlinks=False)
    return path.lstat().st_uid, path.lstat().st_gid


def _chmod(path: Path, value: int) -> int:
    # Not through a symlink: the target's path means the host's root, not the union's.
    if stat.S_ISLNK(path.lstat().st_mode):
        return -1
    path.chmod((0o600, 0o755, 0o2775, 0o444)[value % 4])
    return stat.S_IMODE(path.lstat().st_mode)


def _listing(path: Path, _: int) -> list[tuple[str, bool]]:
    return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(path))


def _setxattr(path: Path, value: int) -> None:
    os.setxattr(path, f"trusted.k{value % 2}", b"%d" % value, follow_symlinks=False)


def _removexattr(path: Path, value: int) -> None:
    os.removexattr(path, f"trusted.k{value % 2}", follow_symlinks=False)


_ACTIONS: dict[str, Callable[..., Any]] = {
    "create": lambda path, value: _open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, b"n%d" % value),
    "write": lambda path, value: _open(path, os.O_CREAT | os.O_WRONLY, b"w%d" % value),
    "overwrite": lambda path, value: _open(path, os.O_WRONLY | os.O_TRUNC, b"o%d" % value),
    "append": lambda path, value: _open(path, os.O_WRONLY | os.O_APPEND, b"a%d" % value),
    "open": lambda path, value: _open(path, os.O_RDWR, b""),
    "truncate": lambda path, value: os.truncate(path, value) if not path.is_symlink() else -1,
    "mkdir": lambda path, value: path.mkdir(0o750),
    "rmdir": lambda path, value: path.rmdir(),
    "unlink": lambda path, value: path.unlink(),
    "symlink": lambda path, value: path.symlink_to(f"target{value}"),
    "mkfifo": lambda path, value: os.mkfifo(path, 0o640),
    "list": _listing,
    "chmod": _chmod,
    "chown": _chown,
    "utime": _utime,
    "setxattr": _setxattr,
    "removexattr": _removexattr,
    "rename": lambda old, new, value: os.rename(old, new),
    "noreplace": lambda old, new, value: renameat2(old, new, RENAME_NOREPLACE),
    "exchange": lambda old, new, value: renameat2(old, new, RENAME_EXCHANGE),
    "link": lambda old, new, value: os.link(old, new, follow_symlinks=False),
}
_ON_TWO_PATHS = ("rename", "noreplace", "exchange", "link")
_MAKING = ("create", "write", "mkdir", "mkdir", "symlink", "mkfifo")
_ON_ONE_PATH = (*(name for name in _ACTIONS if name not in {*_ON_TWO_PATHS, *_MAKING}), "rmdir", "unlink")


def likely(random: Random, existing: list[str]) -> Op:
    """An operation that will mostly succeed, for long walks: on what exists, to names that may be free."""
    directories = [path.removesuffix("/") for path in existing if path.endswith("/")]
    name = random.choice((*_ON_ONE_PATH, *_MAKING * 2, *_ON_TWO_PATHS * 4))
    old = random.choice(existing or ["a"]).removesuffix("/")
    new = f"{random.choice(['.', *directories])}/{random.choice('abcdef')}"
    if name in _ON_TWO_PATHS:
        chosen: tuple[str, ...] = (old, old[:-1] + random.choice("abcdef") if random.random() < 0.3 else new)
    else:
        chosen = (new if name in _MAKING else old,)
    return Op(name, chosen, random.randrange(10))


T = TypeVar("T")


def several(elements: st.SearchStrategy[T], pieces: int) -> st.SearchStrategy[list[T]]:
    """About five elements for each piece. A plain list that may be short is short on average, too."""
    return st.tuples(*[st.lists(elements, max_size=10)] * pieces).map(lambda lists: [*itertools.chain(*lists)])


# What the bottom layer always holds, so that most operations find something; `c` is mostly free.
SKELETON = [
    Thing(kind, path)
    for kind, some in (("directory", "a a/a a/b b b/a b/a/b"), ("file", "a/a/a a/a/b a/b/b b/a/a b/a/b/a b/b"))
    for path in some.split()
]
_PARENTS = ("", "a/", "b/", "a/a/", "a/b/", "b/a/", "b/b/")
paths = st.sampled_from([parent + name for parent in _PARENTS for name in "abc"])
targets = st.sampled_from([parent + name for parent in _PARENTS for name in "cccab"])
values = st.integers(0, 9)
branches = several(st.builds(Thing, st.sampled_from(["directory", "file", *_MAKERS]), paths), 1)
operations = several(
    st.one_of(
        st.builds(Op, st.sampled_from(_ON_ONE_PATH), st.tuples(paths), values),
        st.builds(Op, st.sampled_from(_MAKING), st.tuples(targets), values),
        st.builds(Op, st.sampled_from(("rename", "rename", *_ON_TWO_PATHS)), st.tuples(paths, targets), values),
    ),
    8,
)
