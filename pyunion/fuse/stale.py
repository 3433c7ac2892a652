"""Telling the kernel what it must not go on with, after the lower branches were changed.

A name's invalidation waits for requests in its directory that are under way, and an inode's for its pages
(linux/fuse.h, FUSE_NOTIFY_INVAL_ENTRY and _INODE); so it is done by a thread, while the loop goes on answering. Owns
that thread's way through what is stale.
"""

from __future__ import annotations

import logging
from errno import ENOENT

import pyfuse3
import trio

from pyunion.fs.nodes import Directory, Node
from pyunion.fs.restack import Stale

log = logging.getLogger(__name__)


async def tell(stale: Stale) -> None:
    """Return when the kernel has heard of all. Nothing that it waits for may wait for this."""
    await trio.to_thread.run_sync(_tell, stale)


def _tell(stale: Stale) -> None:
    for directory, name, known in stale.names:
        _forget_name(directory, name, known)
    for node in stale.nodes:
        _forget(node)


def _forget_name(directory: Directory, name: bytes, known: Node | None) -> None:
    node = directory.children.get(name)
    if node is not None and node is not known and node.lookups > 0:
        return  # the kernel has asked since then; who is inside by now shall not lose the name of his directory
    try:
        pyfuse3.invalidate_entry(pyfuse3.InodeT(directory.ino), pyfuse3.FileNameT(name))
    except OSError as error:
        _say(error)


def _forget(node: Node) -> None:
    try:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(node.id))
    except OSError as error:
        _say(error)


def _say(error: OSError) -> None:
    if error.errno != ENOENT:  # the kernel does not have it
        log.warning("the kernel keeps something that has changed: %s", error)
