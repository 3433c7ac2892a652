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


def read(pid: int) -> dict[str, Any] | None:
    """What the daemon `pid` has published; None if it is none of ours, or too old to do so. Raises OSError."""
    folder = f"/proc/{pid}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{fd}") == f"/memfd:{_NAME} (deleted)":
                with open(f"{folder}/{fd}", encoding="ascii") as file:
                    return dict(json.load(file))
    return None


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration as they are read here: lists for tuples, and paths as os.fsdecode gives them."""
    return dict(json.loads(json.dumps(fields, default=os.fsdecode)))
