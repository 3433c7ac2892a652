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
from enum import IntFlag
from typing import Any


class Init(IntFlag):
    """INIT flags that we ask for."""

    DONT_MASK = 1 << 6  # the umask comes with the request: default ACLs need that
    PARALLEL_DIROPS = 1 << 18  # look-ups in one directory need not wait for each other
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28  # no question for security.capability before each write; see kill_suidgid()
    NO_EXPORT_SUPPORT = 1 << 38  # no file handles of the union's own: we could not open one again after a forget


_WANTED = Init.DONT_MASK | Init.PARALLEL_DIROPS | Init.CACHE_SYMLINKS | Init.HANDLE_KILLPRIV_V2 | Init.NO_EXPORT_SUPPORT
_HANDLE_CACHE_DIR = 1 << 62  # as in _wire.c

# (opcode, unique, node, uid, gid, pid, body) -> whether the request is taken
Hook = Callable[[int, int, int, int, int, int, bytes], bool]


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


def configure(opcodes: frozenset[int], hook: Hook) -> bool:
    """Before the session begins: hand the requests with these opcodes to `hook`. Whether the extension is there."""
    return _wire is not None and bool(_wire.configure(_WANTED, sum(1 << code for code in opcodes), hook))


def granted() -> Init:
    """What the kernel has agreed to, once the session has begun."""
    return Init(0) if _wire is None else Init(_wire.granted())


def present() -> bool:
    """Whether the extension was built for this Python."""
    return _wire is not None


def session_fd() -> int:
    """The descriptor of /dev/fuse that replies are written to."""
    return int(_wire.session_fd())


def kill_suidgid() -> bool:
    """Whether the request whose handler has just begun says that setuid and setgid must go (HANDLE_KILLPRIV_V2)."""
    return _wire is not None and bool(_wire.kill_suidgid())


def times_are_now() -> bool:
    """Whether the request whose handler has just begun sets times to "now", which is more often allowed than others."""
    return _wire is not None and bool(_wire.times_are_now())


def cached_directory(handle: int) -> int:
    """The handle of an open directory whose entries the kernel shall keep until the directory changes."""
    return handle if _wire is None else handle | _HANDLE_CACHE_DIR
