"""Who asks: the ids of the process behind a request, what it may keep, and creating objects in its name.

Owns the switch of this thread's file system ids; it is set and taken back without an await in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from signal import SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH
from typing import Protocol, TypeVar

from pyunion.branch import syscalls
from pyunion.union.ids import Owners

CAP_FSETID = 4
CAP_SYS_ADMIN = 21
_T = TypeVar("_T")


class Caller(Protocol):
    """The part of a request's context that the file system needs."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def umask(self) -> int: ...


class Identity:
    """Creates objects as the caller, so that they have the right owner and mode from the first moment on.

    The daemon keeps its capabilities meanwhile, as the kernel's overlayfs does. Where it may not change ids (it
    is not root) objects belong to the daemon's user, who is then the only caller that the kernel lets in. Where the
    union shows one user or group for all, new objects have the daemon's. The caller's umask is the process's meanwhile,
    so that upper's file system applies it where there is no default ACL.
    """

    def __init__(self, *, switch: bool, owners: Owners) -> None:
        self._switch = switch
        self._owners = owners
        self._own = [os.geteuid(), os.getegid()]

    def ids(self, caller: Caller) -> list[int]:
        """The owner of what the caller creates, as a branch gets it. Raises EOVERFLOW where there is none."""
        wanted = (self._owners.uids.stored(caller.uid), self._owners.gids.stored(caller.gid))
        return [own if number == -1 else number for number, own in zip(wanted, self._own, strict=True)]

    def run_as(self, caller: Caller, action: Callable[[], _T]) -> _T:
        """Run one synchronous action with the caller's file system ids and umask."""
        ids = self.ids(caller)
        switch = self._switch and ids != self._own
        if switch:
            syscalls.set_filesystem_ids(*ids)
        own_umask = os.umask(caller.umask)
        try:
            return action()
        finally:
            os.umask(own_umask)
            if switch:
                syscalls.set_filesystem_ids(*self._own)


def is_capable(caller: Caller, capability: int) -> bool:
    """Whether the caller has a capability (capabilities(7)): with CAP_FSETID its writes leave setuid and setgid alone,
    with CAP_SYS_ADMIN it sees trusted xattrs. What it has in a user namespace of its own does not count."""
    capabilities = _status_line(caller, b"CapEff:")
    if capabilities is None:
        return caller.uid == 0
    return bool(int(capabilities, 16) >> capability & 1) and _in_our_user_namespace(caller)


def _in_our_user_namespace(caller: Caller) -> bool:
    try:
        return os.readlink(f"/proc/{caller.pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except OSError:  # it is gone, or not ours to look at
        return caller.uid == 0


def is_member(caller: Caller, gid: int) -> bool:
    """Whether the caller is in a group, by its own or by a supplementary one."""
    return gid == caller.gid or gid in map(int, (_status_line(caller, b"Groups:") or b"").split())


# Signals that end nobody who does not handle them, as in a mask of /proc/PID/status.
_HARMLESS = sum(
    1 << number - 1 for number in (SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH)
)


def is_dying(caller: Caller) -> bool:
    """Whether a signal waits for the caller that ends it."""
    keys = (b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:", b"SigCgt:")
    found = _status(caller, *keys)
    pending, shared, blocked, ignored, caught = (int(found.get(key, b"0"), 16) for key in keys)
    return bool((pending | shared) & ~(blocked | ignored | caught | _HARMLESS))


def _status_line(caller: Caller, key: bytes) -> bytes | None:
    return _status(caller, key).get(key)


def _status(caller: Caller, *keys: bytes) -> dict[bytes, bytes]:
    """Lines of the caller's /proc/PID/status, by how they begin; none where it is gone, or in another pid namespace."""
    found: dict[bytes, bytes] = {}
    try:
        with open(f"/proc/{caller.pid}/status", "rb") as status:
            for line in status:
                key = line[: line.find(b":") + 1]
                if key in keys:
                    found[key] = line[len(key) :]
                    if len(found) == len(keys):
                        break
    except OSError:
        pass
    return found
