"""What comes into a directory, told by the kernel (inotify(7)): so a test acts at that moment, and need not look again
and again or sleep."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.harness.mounts import PATIENCE
from tests.harness.ready import readable

_COMES = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO
_GOES = 0x400 | 0x800  # IN_DELETE_SELF, IN_MOVE_SELF
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name

_libc = ctypes.CDLL(None, use_errno=True)


def arrivals(directory: Path) -> Iterator[str]:
    """The names that are there, then each that comes, until the directory itself is renamed or removed. A name comes
    again if it is made again, and one of the first may come twice."""
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    try:
        if fd < 0 or _libc.inotify_add_watch(fd, os.fsencode(directory), _COMES | _GOES) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
        yield from os.listdir(directory)
        while True:
            assert readable(fd, seconds=PATIENCE), f"nothing comes into {directory}"
            for mask, name in _events(os.read(fd, 1 << 16)):
                if mask & _GOES:
                    return
                yield name
    finally:
        os.close(fd)


def _events(events: bytes) -> Iterator[tuple[int, str]]:
    while events:
        _, mask, _, length = _EVENT.unpack_from(events)
        yield mask, os.fsdecode(events[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
        events = events[_EVENT.size + length :]


def arrival(directory: Path, start: str) -> Path:
    """The entry whose name starts so, as soon as it is there."""
    return directory / next(name for name in arrivals(directory) if name.startswith(start))
