"""Who has to do with a mount: the daemon that serves it, and those who keep it busy.

Owns the search through /proc. Reads links and text there only, and never asks the mounted file system itself: its
daemon may hang or be gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from pyunion import board, mountinfo
from pyunion.mountinfo import Mounted


class User(NamedTuple):
    """A process that keeps a mount busy, and one thing by which it does."""

    pid: int
    command: str
    path: str

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid}, {self.path})"


def of_mount(mount: Mounted) -> Iterator[User]:
    """The processes that keep the mount busy, other than this one, which has inherited what its caller has open."""
    for pid in _processes():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            held = _held(pid, mount)
            if held is not None:
                yield User(pid, _command(pid), os.fsdecode(held))


def mounts_on(mount: Mounted) -> list[Mounted]:
    """What is mounted on top of it, which keeps it busy as well."""
    return [other for other in mountinfo.read() if other.parent_id == mount.mount_id]


def daemon_of(mount: Mounted) -> int | None:
    """The process that serves a FUSE mount: the one whose /dev/fuse is connected to it."""
    connection = os.minor(mount.device)
    for pid in _processes():
        with contextlib.suppress(OSError):
            for fd, target in _descriptors(pid):
                if target == b"/dev/fuse" and _serves(pid, fd, connection, mount.point):
                    return pid
    return None


def _serves(pid: int, fd: bytes, connection: int, point: bytes) -> bool:
    number = _fdinfo(pid, fd, b"fuse_connection:")
    if number is not None:
        return number == connection
    # Before Linux 6.4 the kernel does not tell, but our daemons do.
    said = board.read(pid)
    return said is not None and said["mountpoint"] == os.fsdecode(point)


def _held(pid: int, mount: Mounted) -> bytes | None:
    for link in (b"cwd", b"root", b"exe"):
        target = os.readlink(b"/proc/%d/%b" % (pid, link))
        if _is_below(target, mount.point):
            return target
    for fd, target in _descriptors(pid):
        if _fdinfo(pid, fd, b"mnt_id:") == mount.mount_id:
            return target
    device = b"%02x:%02x" % (os.major(mount.device), os.minor(mount.device))
    for line in _read(pid, b"maps").split(b"\n"):  # names may have other ends of lines in them
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[3] == device:
            return fields[5]
    return None


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _descriptors(pid: int) -> Iterator[tuple[bytes, bytes]]:
    folder = b"/proc/%d/fd" % pid
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield fd, os.readlink(os.path.join(folder, fd))


def _fdinfo(pid: int, fd: bytes, key: bytes) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        for line in _read(pid, b"fdinfo/" + fd).splitlines():
            if line.startswith(key):
                return int(line[len(key) :])
    return None


def _read(pid: int, name: bytes) -> bytes:
    with open(b"/proc/%d/%b" % (pid, name), "rb") as file:
        return file.read()


def _command(pid: int) -> str:
    return os.fsdecode(_read(pid, b"comm").rstrip(b"\n"))
