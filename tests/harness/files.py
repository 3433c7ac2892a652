"""Small verbs for tests: write, read, list, try a call and get its errno, set and look for overlayfs's marks.

Each does one thing on one path and says nothing about which file system it is on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
_AT_FDCWD = -100
PYTHON = os.path.realpath(sys.executable)  # that of the system, which any user can run, wherever the .venv is

_libc = ctypes.CDLL(None, use_errno=True)


def write(path: Path, text: str = "", mode: int = 0o644) -> Path:
    """A file with this text and mode, its parent directories made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def tree(top: Path) -> list[str]:
    """The paths of all below `top`, sorted, directories with a slash at the end."""
    found = []
    for directory, subdirs, names in os.walk(top, onerror=_raise):
        here = Path(directory).relative_to(top)
        links = {name for name in subdirs if (Path(directory) / name).is_symlink()}
        found += [f"{here / name}/" for name in subdirs if name not in links]
        found += [str(here / name) for name in [*names, *links]]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def outcome(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """'OK', or the name of the errno that the call fails with."""
    try:
        call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "OK"


def touch_open(path: Path, flags: int, mode: int = 0o644) -> None:
    """open(2) and close(2)."""
    os.close(os.open(path, flags, mode))


def renameat2(old: os.PathLike[str] | bytes, new: os.PathLike[str] | bytes, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(old))


def run(*command: str | Path, check: bool = True) -> str:
    """The output of a real tool; what it complains about goes into the exception when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"{command} gave {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def as_user(*command: str | Path, uid: int = 1000, check: bool = True) -> str:
    """Run a command as an ordinary user, without any of root's groups or capabilities."""
    return run(
        "setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", *command, check=check
    )  # fmt: skip


def make_whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o20000, 0)


def make_opaque(path: Path, value: bytes = b"y") -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, "trusted.overlay.opaque", value)


def is_whiteout(path: Path) -> bool:
    st = path.lstat()
    return st.st_rdev == 0 and st.st_mode & 0o170000 == 0o20000


def mark(path: Path, name: str) -> bytes | None:
    """The value of one of overlayfs's marks on an object of a branch, None when it has none."""
    try:
        return os.getxattr(path, f"trusted.overlay.{name}", follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
