"""The layers of Docker's storage driver overlay2, as folders on disk.

Owns what the driver writes beside the `diff` of each layer (daemon/graphdriver/overlay2/overlay.go of Moby): the file
`lower` names the layers below by `l/SHORT`, topmost first, and l/SHORT is a symlink to their `diff`; a base layer has
none. Only reads; asks no Docker, and knows nothing of mounting.
"""

from __future__ import annotations

import os
import re

from pyunion.errors import ExitCode, PyunionError

_SHORT = re.compile(rb"l/\w+")
# Folders of other drivers that people find in /var/lib/docker and take for layers, and who owns them.
_OTHERS = {
    driver: f"Docker's storage driver {os.fsdecode(driver)}"
    for driver in (b"aufs", b"btrfs", b"devicemapper", b"overlay", b"vfs", b"zfs")
} | {b"io.containerd.snapshotter.v1.overlayfs": "containerd's snapshotter overlayfs"}


def branches(layer: bytes) -> list[bytes]:
    """What a container on this layer sees, as branches: the `diff` of the layer and of those below it, topmost first.

    Raises PyunionError, with ExitCode.BRANCH, if the folder is no layer of overlay2 or a layer below it is missing.
    """
    shown = f"Docker layer {os.fsdecode(layer)}"
    try:
        home, name = os.path.split(os.path.realpath(layer, strict=True))
        folder = os.path.join(home, name)
        if not os.path.isdir(folder):
            raise _refused(f"{shown} is not a directory")
        if not (_has(folder, b"diff") and _has(folder, b"link") and _has(home, b"l")):
            raise _refused(f"{shown} {_what_else(folder)}")
        shorts = _read_lower(folder, shown)
        return [os.path.join(folder, b"diff"), *(_follow(os.path.join(home, short), shown) for short in shorts)]
    except FileNotFoundError:
        raise _refused(f"{shown} does not exist; `docker inspect -f '{{{{.GraphDriver.Data}}}}' NAME` tells") from None
    except OSError as error:
        raise _refused(f"{shown} cannot be read as user {os.geteuid()}: {error.strerror}") from None


def _has(folder: bytes, name: bytes) -> bool:
    """os.path.exists would take a folder that may not be searched for an empty one."""
    try:
        os.stat(os.path.join(folder, name))
    except FileNotFoundError:
        return False
    return True


def _what_else(folder: bytes) -> str:
    """Why a directory is no layer, as far as it can be told."""
    above, name = os.path.split(folder)
    if name in (b"diff", b"merged", b"work") and _has(above, b"link"):
        return f"is a part of a layer; name the folder above it, {os.fsdecode(above)}"
    for part in reversed(folder.split(b"/")):
        if part in _OTHERS:
            return f"belongs to {_OTHERS[part]}; only layers of overlay2 can be read (`docker info` names the driver)"
    return "is no layer of overlay2, which has `diff` and `link` in it and `l` beside it; name a folder .../overlay2/ID"


def _read_lower(folder: bytes, shown: str) -> list[bytes]:
    """The layers below, topmost first, as l/SHORT."""
    try:
        with open(os.path.join(folder, b"lower"), "rb") as file:
            text = file.read()
    except FileNotFoundError:  # a base layer
        return []
    shorts = text.split(b":")
    for short in shorts:
        if not _SHORT.fullmatch(short):
            raise _damaged(shown, f"its file `lower` has '{os.fsdecode(short)}' where l/SHORT should be")
    return shorts


def _follow(short: bytes, shown: str) -> bytes:
    """The `diff` that a short link leads to."""
    try:
        diff = os.path.realpath(short, strict=True)
    except FileNotFoundError:
        leads = f"leads to {os.fsdecode(os.readlink(short))}, which does" if os.path.islink(short) else "does"
        raise _damaged(shown, f"{os.fsdecode(short)}, a layer below it, {leads} not exist") from None
    if not os.path.isdir(diff):
        raise _damaged(shown, f"{os.fsdecode(short)}, a layer below it, is not a directory")
    return diff


def _damaged(shown: str, how: str) -> PyunionError:
    return _refused(f"{shown} is damaged: {how}; let Docker pull or build the image again")


def _refused(sentence: str) -> PyunionError:
    return PyunionError(sentence, ExitCode.BRANCH)
