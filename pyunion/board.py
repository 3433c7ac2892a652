"""What a running mount says of itself, in a nameless file that it holds open: its configuration, and which other
descriptors are its branches and its control socket.

Owns the form of it. It needs no directory, only those may read it who may look into the daemon, and it is gone with the
daemon however that ends. Knows no mount table.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from typing import Any

from pyunion.config import MountConfig

_NAME = "pyunion-mount"


def publish(config: MountConfig, **daemon: Any) -> int:
    """The descriptor that the daemon keeps open. Beside the fields of the configuration, under `daemon`, it says the
    descriptors of the roots of all `branches`, topmost first, and of the `index`; the `xattr_prefix` of marks; and
    `control`, see pyunion/control/address.py."""
    fd = os.memfd_create(_NAME)
    with open(fd, "w", encoding="ascii", closefd=False) as file:
        json.dump(plain(asdict(config)) | {"daemon": daemon}, file)
    return fd


def published(fd: int) -> dict[str, Any]:
    """What a descriptor of publish() says now."""
    return dict(json.loads(os.pread(fd, os.fstat(fd).st_size, 0)))


def read(pid: int) -> dict[str, Any] | None:
    """What the daemon `pid` has published; None if it is none of ours, or too old to do so. Raises OSError."""
    path = _path_of(pid)
    if path is None:
        return None
    with open(path, "rb") as file:
        return published(file.fileno())


def _path_of(pid: int) -> str | None:
    folder = f"/proc/{pid}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{fd}") == f"/memfd:{_NAME} (deleted)":
                return f"{folder}/{fd}"
    return None


def rewrite(pid: int, **changes: Any) -> None:
    """Change fields in what the daemon `pid` has published; it has to be told to look. Raises OSError."""
    said = read(pid)
    path = _path_of(pid)
    if said is not None and path is not None:
        with open(path, "r+", encoding="ascii") as file:
            json.dump(said | plain(changes), file)
            file.truncate()


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration as they are read here: lists for tuples, and paths as os.fsdecode gives them."""
    return dict(json.loads(json.dumps(fields, default=os.fsdecode)))
