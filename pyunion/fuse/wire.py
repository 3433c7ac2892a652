"""What the kernel is asked for beyond pyfuse3: INIT flags, open flags and requests, through the extension `_wire`.

Owns the import of the extension, which has to come before that of pyfuse3 (pyunion/fuse/__init__.py sees to it), and
the numbers of the kernel's protocol (linux/fuse.h). Without the extension, or if it is not called, everything here says
no and the mount works with what pyfuse3 has.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Any


class Init(IntFlag):
    """INIT flags that we ask for."""

    DONT_MASK = 1 << 6  # the umask comes with the request: default ACLs need that
    PARALLEL_DIROPS = 1 << 18  # look-ups in one directory need not wait for each other
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24  # said by the kernel alone: ENOSYS ends requests for opening directories
    HANDLE_KILLPRIV_V2 = 1 << 28  # no question for security.capability before each write; see kill_suidgid()
    PASSTHROUGH = 1 << 37  # Linux 6.9: the kernel reads and writes some files by itself; see backing.py
    NO_EXPORT_SUPPORT = 1 << 38  # no file handles of the union's own: we could not open one again after a forget


_WANTED = Init.DONT_MASK | Init.PARALLEL_DIROPS | Init.CACHE_SYMLINKS | Init.NO_OPENDIR_SUPPORT
_WANTED |= Init.HANDLE_KILLPRIV_V2 | Init.NO_EXPORT_SUPPORT

_SPIN_US = 50  # how long it looks for a request before it goes to sleep; see spin() in _wire.c

# (opcode, unique, node, uid, gid, pid, body) -> the reply's bytes, an errno, None for no reply, True if a task replies
Hook = Callable[[int, int, int, int, int, int, bytes], Any]


class Served(IntEnum):
    """What serve() has done, as in _wire.c."""

    NOTHING = 0
    REQUESTS = 1
    UP_TO_ONE_FOR_PYFUSE3 = 2


def _load() -> Any:
    """The extension, with its symbols where pyfuse3 will look for libfuse's; None where it was not built."""
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        return importlib.import_module("pyunion.fuse._wire")
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(before)


_wire: Any = _load()


def configure(opcodes: frozenset[int], hook: Hook, *, passthrough: bool) -> bool:
    """Hand the requests with these opcodes to `hook` from now on. Whether the extension is there.

    The first time has to come before the session begins, as that is when the kernel is asked for what we want. With
    `passthrough`, if the kernel has it, there is no writeback cache.
    """
    wanted = _WANTED | Init.PASSTHROUGH if passthrough else _WANTED
    return _wire is not None and bool(_wire.configure(wanted, sum(1 << code for code in opcodes), hook))


def granted() -> Init:
    """What the kernel has agreed to, once the session has begun."""
    return Init(0) if _wire is None else Init(_wire.granted())


def present() -> bool:
    """Whether the extension was built for this Python."""
    return _wire is not None


def session_fd() -> int:
    """The descriptor of /dev/fuse that replies are written to."""
    return int(_wire.session_fd())


def backing_open(fd: int, lacking: int) -> int:
    """Let the kernel read and write an open file by itself (passthrough, which it has granted): in our name, but
    without the capabilities in a mask of the first 32 (capabilities(7)). Its number for the file. Raises OSError."""
    return int(_wire.backing_open(fd, lacking))


def backing_close(number: int) -> None:
    """The kernel does so no more, once nobody has the file open."""
    _wire.backing_close(number)


def serves() -> bool:
    """Whether serve() can be called: the extension is there, and the session has begun."""
    return _wire is not None and session_fd() >= 0


def reply(unique: int, result: bytes | bytearray | memoryview | int | None) -> None:
    """Answer a request that a task was started for: bytes, or an errno."""
    _wire.reply(unique, result)


def serve(other: int, slice_s: float, wait_s: float) -> tuple[Served, int]:
    """Answer requests by the hook for `slice_s`; wait for each for `wait_s`, or until `other` (-1: none) is readable.

    Returns before that if a task was started, which needs trio; and how many came. The session has to have begun.
    """
    served, requests = _wire.serve(other, int(slice_s * 1e6), int(wait_s * 1e3), _SPIN_US)
    return Served(served), requests
