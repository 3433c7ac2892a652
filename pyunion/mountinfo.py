"""What is mounted, as /proc/self/mountinfo tells it (proc_pid_mountinfo(5)).

Owns the parsing and nothing else; asks no mounted file system anything, so that a dead one cannot block it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    device: int
    root: bytes  # which part of the file system it shows
    point: bytes
    fstype: str
    source: bytes
    options: bytes = b""  # of the file system


def read() -> list[Mounted]:
    """All mounts of this mount namespace, those mounted over others later."""
    with open("/proc/self/mountinfo", "rb") as file:
        return [_parse(line) for line in file]


def topmost_at(point: bytes) -> Mounted | None:
    """What is mounted at exactly this path; the visible one of several."""
    at_point = [mount for mount in read() if mount.point == point]
    return at_point[-1] if at_point else None


def above(path: bytes) -> Mounted | None:
    """What an absolute path without symlinks and dots lies in: the mount whose point is the longest part of it."""
    best = None
    for mount in read():
        point = mount.point.rstrip(b"/") + b"/"
        if (path + b"/").startswith(point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mount_id(fd: int) -> int:
    """The mount that a descriptor is on; 0 where /proc does not say."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return 0


def _parse(line: bytes) -> Mounted:
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)  # a variable number of propagation fields comes before it
    major, minor = fields[2].split(b":")
    return Mounted(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        device=os.makedev(int(major), int(minor)),
        root=_unescape(fields[3]),
        point=_unescape(fields[4]),
        fstype=os.fsdecode(fields[dash + 1]),
        source=_unescape(fields[dash + 2]),
        options=_unescape(fields[dash + 3].rstrip(b"\n")),
    )


def _unescape(text: bytes) -> bytes:
    """Space, tab, newline and backslash are octal there."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)
