"""The status of a running mount, as facts for the control socket.

Owns what is told and in which form: plain values, paths as os.fsdecode gives them, sizes in bytes, times in seconds.
What may block (a branch on a server that does not answer) is asked by threads of its own, of which there are few, so
that copies never wait for them.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import Any

import trio

from pyunion import __version__
from pyunion.branch.dirs import Branch
from pyunion.config import MountConfig
from pyunion.fs.filesystem import FileSystem
from pyunion.fuse import tally
from pyunion.fuse.backing import Backing

_PATIENCE_S = 2.0
_MOST_RUNNING = 100  # copies that are told one by one


class Facts:
    """What can be told of one mount; `metrics` is the address on which they are told as metrics too."""

    def __init__(self, config: MountConfig, fs: FileSystem, backing: Backing) -> None:
        self._config = config
        self._fs = fs
        self._backing = backing
        self._begun = time.monotonic()
        self._threads: dict[bytes, trio.CapacityLimiter] = {}
        self.metrics: str | None = None
        self.mountpoint = config.mountpoint

    def _branches(self) -> list[tuple[Branch, str]]:
        """Each with its role, topmost first."""
        merged, data = self._fs.table.root.layers, self._fs.lookup.data_layers
        roles = ["upper" if layer.branch.is_upper else "lower" for layer in merged] + ["data"] * len(data)
        return list(zip((layer.branch for layer in (*merged, *data)), roles, strict=True))

    async def status(self) -> dict[str, Any]:
        """Everything at once. Waits for branches that do not answer, for _PATIENCE_S at most."""
        branches = self._branches()
        asked = await self._ask_outside(branches)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": os.fsdecode(self._config.mountpoint),
            "read_only": self._config.read_only or self._config.upper is None,
            "branches": [asked.get(branch.path) or _silent(branch, role) for branch, role in branches],
            "descriptors": asked.get(b""),
            **self.counts(),
            "copy_ups": self.copy_ups(),
            "log_level": logging.getLevelName(logging.getLogger().level).lower(),
            "metrics": self.metrics,
        }

    def counts(self) -> dict[str, Any]:
        """What is known without asking anybody; from any thread."""
        fs = self._fs
        return {
            "uptime": time.monotonic() - self._begun,
            "requests": tally.requests_by_name(),
            "errors": tally.errors(),
            "open_files": len(fs.files),
            "removed": [os.fsdecode(branch.path) for branch in list(fs.table.removed)],
            "passthrough": {"granted": self._backing.granted, "files": len(self._backing)},
            "cache": {
                "nodes": len(fs.table.nodes),
                "directories": len(fs.cache),
                "most_directories": fs.cache.limit,
            },
        }

    def copy_ups(self) -> dict[str, Any]:
        """Copies by kind, the bytes of those that are done, and those that are being made."""
        progress = self._fs.copier.progress
        now = time.monotonic()
        return {
            "done": dict(progress.done),
            "bytes": progress.bytes,
            "running": [
                {
                    "path": os.fsdecode(copy.path()),
                    "bytes": copy.copied(),
                    "total": copy.total,
                    "seconds": now - copy.begun,
                }
                for copy in progress.running[:_MOST_RUNNING]
            ],
        }

    async def _ask_outside(self, branches: list[tuple[Branch, str]]) -> dict[bytes, Any]:
        answers: dict[bytes, Any] = {}
        # For each question a thread of its own: one that waits for ever holds up the same one only.
        keys = (b"", *(branch.path for branch, _ in branches))
        self._threads = threads = {key: self._threads.get(key) or trio.CapacityLimiter(1) for key in keys}

        async def ask(key: bytes, question: Any) -> None:
            answers[key] = await trio.to_thread.run_sync(question, abandon_on_cancel=True, limiter=threads[key])

        with trio.move_on_after(_PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, b"", _descriptors)
                for branch, role in branches:
                    nursery.start_soon(ask, branch.path, partial(self._space, branch, role))
        return answers

    def _space(self, branch: Branch, role: str) -> dict[str, Any]:
        facts = _silent(branch, role)
        try:
            fd = branch.root.open_fd  # -1 for one that was removed meanwhile
            space = os.fstatvfs(fd)
            removed = os.fstat(fd).st_nlink == 0
        except OSError as error:
            return facts | {"state": os.strerror(error.errno or 0)}
        stuck = branch.is_upper and not self._config.read_only and bool(space.f_flag & os.ST_RDONLY)
        return facts | {
            "state": "removed" if removed else "read-only" if stuck else "ok",
            "size": space.f_blocks * space.f_frsize,
            "free": space.f_bavail * space.f_frsize,
            "used": (space.f_blocks - space.f_bfree) * space.f_frsize,
        }


def _silent(branch: Branch, role: str) -> dict[str, Any]:
    return {"path": os.fsdecode(branch.path), "role": role, "state": "does not answer"}


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
