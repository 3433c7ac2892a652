"""The layer between an image and what is written on it: what belongs to the machine, as docker's init layer.

Owns what is in it. It hides what the image has there, symlinks too, and so nothing of it is in a committed layer unless
a program has changed it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from pyunion.branch import copyup
from pyunion.layers.tree import Entry, Tree

_MOUNT_POINTS = (b"dev", b"proc", b"sys")


def make(place: bytes, image: Tree, hostname: str) -> None:
    """Fill a new directory. Those that the image has, too, have its owner, mode and times. Raises OSError."""
    directory(place, image.find(b""))
    for name in _MOUNT_POINTS:
        directory(os.path.join(place, name), image.find(name))
    etc = os.path.join(place, b"etc")
    found = image.find(b"etc")
    if found is not None and not found.is_dir:
        return
    os.mkdir(etc, 0o755)
    for name, text in _files(hostname).items():
        with open(os.path.join(etc, name), "xb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
    os.symlink(b"/proc/mounts", os.path.join(etc, b"mtab"))
    _dress(etc, found)


def directory(place: bytes, like: Entry | None) -> None:
    """A new directory with the attributes of another one, if that is one."""
    os.mkdir(place, 0o755)
    _dress(place, like)


def _dress(place: bytes, like: Entry | None) -> None:
    if like is not None and like.is_dir:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copyup.dress(fd, b".", like.dir.fd(), like.name, like.st, copyup.Terms(sync=False))
        finally:
            os.close(fd)


def _files(hostname: str) -> Mapping[bytes, bytes]:
    """The network is the machine's, and so its names are."""
    own = f"127.0.1.1\t{hostname}\n".encode()
    files = {b"hostname": f"{hostname}\n".encode(), b"hosts": _read(b"/etc/hosts") + own}
    return files | {b"resolv.conf": _read(b"/etc/resolv.conf")}


def _read(path: bytes) -> bytes:
    """A file of the machine; nothing where it has none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        text = file.read()
        return text if not text or text.endswith(b"\n") else text + b"\n"
    return b""
