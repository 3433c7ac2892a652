"""Who has to do with a mount: the daemon that serves it, and those who keep it busy.

Owns the search through /proc, and the sentence of a busy mount. Reads links and text there only, and never asks the
mounted file system itself: its daemon may hang or be gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from pyunion import board, mountinfo
from pyunion.mountinfo import Mounted

_LINKS = {b"cwd": "working directory", b"root": "root directory", b"exe": "program"}
_MOST_NAMED = 5


class _Hold(NamedTuple):
    """One thing by which a process keeps a mount busy."""

    way: str
    path: bytes
    writes: bool


def busy(mount: Mounted, *, for_writing: bool = False) -> str:
    """The sentence that a mount is busy, and by whom; `for_writing`, by whom it is kept from becoming read-only.

    This process is left out, as it has inherited what its caller has open.
    """
    found, may_look = [], True
    for pid in _processes():
        if pid != os.getpid():
            try:
                found += _user(pid, mount, for_writing)
            except PermissionError:
                may_look = False
            except OSError:  # it has ended
                pass
    if not for_writing:
        found += [f"the {above.fstype} mount on {os.fsdecode(above.point)}" for above in _mounts_on(mount)]
    if len(found) > _MOST_NAMED:
        found[_MOST_NAMED:] = [f"{len(found) - _MOST_NAMED} more"]
    elif not found and may_look:
        found = ["something that /proc does not show, such as a mount or a process elsewhere"]
    elif not found:
        found = ["perhaps a process that this one may not look into; root's `pyunion umount` names it"]
    return f"{os.fsdecode(mount.point)} is busy: {', '.join(found)}"


def _user(pid: int, mount: Mounted, for_writing: bool) -> list[str]:
    """The process with the first thing by which it keeps the mount busy, if it does."""
    for hold in _holds(pid, mount):
        # what was deleted while it is in use is still to be removed, which is a change as well
        if not for_writing or hold.writes or hold.path.endswith(b" (deleted)"):
            return [f"{_command(pid)} (process {pid}, {hold.way} {os.fsdecode(hold.path)})"]
    return []


def _mounts_on(mount: Mounted) -> list[Mounted]:
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
    number = _fdinfo(pid, fd).get(b"fuse_connection")
    if number is not None:
        return int(number) == connection
    # Before Linux 6.4 the kernel does not tell, but our daemons do.
    said = board.read(pid)
    return said is not None and said["mountpoint"] == os.fsdecode(point)


def _holds(pid: int, mount: Mounted) -> Iterator[_Hold]:
    for name, way in _LINKS.items():
        link = b"/proc/%d/%b" % (pid, name)
        with contextlib.suppress(FileNotFoundError):
            if _leads_to(link, mount):
                yield _Hold(way, os.readlink(link), writes=False)
    for fd, target in _descriptors(pid):
        said = _fdinfo(pid, fd)
        if said.get(b"mnt_id") == b"%d" % mount.mount_id:
            yield _Hold("open file", target, writes=int(said[b"flags"], 8) & os.O_ACCMODE != os.O_RDONLY)
    device = b"%02x:%02x" % (os.major(mount.device), os.minor(mount.device))
    for line in _read(pid, b"maps").split(b"\n"):  # names may have other ends of lines in them
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[3] == device:
            yield _Hold("mapped file", fields[5], writes=fields[1].startswith(b"rws"))


def _leads_to(link: bytes, mount: Mounted) -> bool:
    """Whether what a link of /proc stands for is on the mount, and not only of a path like that elsewhere."""
    fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        return mountinfo.mount_id(fd) == mount.mount_id
    finally:
        os.close(fd)


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _descriptors(pid: int) -> Iterator[tuple[bytes, bytes]]:
    folder = b"/proc/%d/fd" % pid
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield fd, os.readlink(os.path.join(folder, fd))


def _fdinfo(pid: int, fd: bytes) -> dict[bytes, bytes]:
    """What the kernel tells of a descriptor, by its names; nothing when it is closed."""
    with contextlib.suppress(FileNotFoundError):
        lines = [line.partition(b":") for line in _read(pid, b"fdinfo/" + fd).splitlines()]
        return {name: value.strip() for name, _, value in lines}
    return {}


def _read(pid: int, name: bytes) -> bytes:
    with open(b"/proc/%d/%b" % (pid, name), "rb") as file:
        return file.read()


def _command(pid: int) -> str:
    return os.fsdecode(_read(pid, b"comm").rstrip(b"\n"))
