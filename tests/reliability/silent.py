"""What clients do that need a lower branch which does not answer, and those who do not need it."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.harness.held import Client
from tests.harness.union import Union

NEAR = 300  # names in another branch
MANY = 64  # files that are read at the same time
_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS in linux/fs.h


def read(path: Path) -> str:
    return path.read_text()


def _mapped(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return data[:]


def append(path: Path) -> str:
    with path.open("a") as file:
        file.write(" more")
    return path.read_text()


def _read_beside(path: Path) -> bytes:
    with path.open("rb", buffering=0) as before:
        assert before.read() == b"far"
        append(path)
        return os.pread(before.fileno(), 20, 0)


def _truncated(path: Path) -> int:
    os.truncate(path, 2)
    return path.stat().st_size


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(fcntl.ioctl(fd, _GETFLAGS, bytes(4)))
    finally:
        os.close(fd)


def _copied(path: Path) -> bytes:
    with path.open("rb") as source, path.with_name("copy").open("wb+") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 3)
        return os.pread(target.fileno(), 10, 0)


def _hole(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE)
    finally:
        os.close(fd)


def _renamed(old: Path, new: Path) -> list[str]:
    old.rename(new)
    return sorted(path.name for path in old.parent.iterdir())


def _gone(call: Callable[[], object], path: Path) -> bool:
    call()
    return not os.path.lexists(path)


def _created(path: Path) -> str:
    path.write_text("new")
    return path.read_text()


def _made(path: Path) -> bool:
    path.mkdir()
    return path.is_dir()


def _changed_mode(path: Path) -> int:
    path.chmod(0o640)
    return path.stat().st_mode & 0o777


def _given_away(path: Path) -> int:
    os.lchown(path, 7, 7)
    return path.lstat().st_uid


def _with_xattr(path: Path) -> str:
    os.setxattr(path, "user.new", b"1")
    return path.read_text()


def _symlinked(path: Path) -> str:
    path.symlink_to("file")
    return path.read_text()


def _linked(path: Path) -> str:
    os.link(path, path.with_name("link"))
    return path.with_name("link").read_text()


# What a client does in a directory of the branch that nobody has looked at, and what that gives.
NEEDS_IT: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "stat": (lambda d: (d / "file").stat().st_size, 3),
    "stat of nothing": (lambda d: (d / "none").exists(), False),
    "list": (lambda d: sorted(os.listdir(d)), ["dir", "file", "symlink"]),
    "read": (lambda d: read(d / "file"), "far"),
    "map": (lambda d: _mapped(d / "file"), b"far"),
    "readlink": (lambda d: os.readlink(d / "symlink"), "file"),
    "get xattr": (lambda d: os.getxattr(d / "file", "user.there"), b"yes"),
    "list xattrs": (lambda d: os.listxattr(d / "file"), ["user.there"]),
    "seek to a hole": (lambda d: _hole(d / "file"), 3),
    "chattr's flags": (lambda d: _flags(d / "file"), "ENOTTY"),
    "copy a range": (lambda d: _copied(d / "file"), b"far"),
    "append": (lambda d: append(d / "file"), "far more"),
    "append beside a reader": (lambda d: _read_beside(d / "file"), b"far more"),
    "truncate": (lambda d: _truncated(d / "file"), 2),
    "open with O_TRUNC": (lambda d: _created(d / "file"), "new"),
    "chmod": (lambda d: _changed_mode(d / "file"), 0o640),
    "chmod a directory": (lambda d: _changed_mode(d / "dir"), 0o640),
    "chown a symlink": (lambda d: _given_away(d / "symlink"), 7),
    "set xattr": (lambda d: _with_xattr(d / "file"), "far"),
    "create": (lambda d: _created(d / "new"), "new"),
    "mkdir": (lambda d: _made(d / "new"), True),
    "symlink": (lambda d: _symlinked(d / "new"), "far"),
    "link": (lambda d: _linked(d / "file"), "far"),
    "rename": (lambda d: _renamed(d / "file", d / "moved"), ["dir", "moved", "symlink"]),
    "rename a directory": (lambda d: _renamed(d / "dir", d / "moved"), ["file", "moved", "symlink"]),
    "rename over": (lambda d: _renamed(d / "symlink", d / "file"), ["dir", "file"]),
    "unlink": (lambda d: _gone((d / "file").unlink, d / "file"), True),
    "rmdir": (lambda d: _gone((d / "dir").rmdir, d / "dir"), True),
}


def place(name: str) -> str:
    return name.replace(" ", "-").replace("'", "")


class Known:
    """Directories that are open, so that the kernel, once it knows them, does not forget them, whatever other programs
    make it forget."""

    def __init__(self, at: Path, names: Iterable[str]) -> None:
        self._opened = [os.open(at / name, os.O_PATH) for name in names]

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.pop())


class Others:
    """Those who do not need the branch, each time with names that are new to the kernel."""

    def __init__(self, union: Union) -> None:
        self._at = union.at
        self._names = (f"{number}" for number in range(NEAR))

    def require_answers(self) -> None:
        old, changed, moved = (self._at / "near" / next(self._names) for _ in range(3))
        new = self._at / "mine" / moved.name

        def call() -> list[object]:
            results = [read(old), append(changed), _created(new), _gone(lambda: moved.rename(new), moved)]
            return [*results, len(os.listdir(self._at / "near")) > NEAR // 2]

        assert Client(call).await_result() == ["near", "near more", "new", True, True]
