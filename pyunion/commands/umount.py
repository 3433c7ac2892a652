"""`pyunion umount`: end a mount, wait until its daemon has written everything, and say who is in the way.

Owns the order of it. Works on dead mounts too, so nothing here touches the mounted file system itself.
"""

from __future__ import annotations

import errno
import os
import select
import time
from argparse import Namespace

from pyunion import configfile, mountinfo, users
from pyunion.errors import ExitCode, PyunionError
from pyunion.mountinfo import Mounted
from pyunion.unmounting import unmount

_PATIENCE_S = 30.0
_POLL_S = 0.05


def run(arguments: Namespace) -> int:
    point = _point(arguments)
    if arguments.dead:
        clear_dead(point)
        return ExitCode.OK
    mount = _find(point)
    os.chdir("/")  # who calls us from within is in the way, and we are not
    daemon = users.daemon_of(mount)
    _unmount(mount, arguments.lazy)
    # After a lazy one the daemon lives as long as the mount's users do.
    if daemon is not None and not arguments.lazy and not _wait_end(daemon):
        raise PyunionError(
            f"{os.fsdecode(mount.point)} is unmounted, but its daemon (process {daemon}) has not ended after "
            f"{_PATIENCE_S:.0f} s; its log may say what it waits for"
        )
    return ExitCode.OK


def _point(arguments: Namespace) -> bytes:
    point = None if arguments.mountpoint is None else os.fsencode(arguments.mountpoint)
    if point is None and arguments.config is not None:
        point = configfile.mountpoint(arguments.config)
    if point is None:
        raise PyunionError("no mount point is given; name it, or --config with a file that does", ExitCode.USAGE)
    return point


def clear_dead(point: bytes) -> None:
    """Detach a mount whose daemon is gone: whoever is still in it can do nothing more there. Raises PyunionError."""
    try:
        os.statvfs(point)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            _unmount(_find(point), lazy=True)


def _find(given: bytes) -> Mounted:
    """The FUSE mount at a path, which may be dead: only its parent directories are looked at."""
    mount = mountinfo.topmost_at(os.path.realpath(given))
    if mount is None:
        raise PyunionError(f"nothing is mounted on {os.fsdecode(given)}", ExitCode.MOUNT)
    if mount.fstype != "fuse" and not mount.fstype.startswith("fuse."):
        raise PyunionError(
            f"{os.fsdecode(given)} is not a union of ours but a mount of type {mount.fstype}; use umount(8) for it",
            ExitCode.MOUNT,
        )
    return mount


def _unmount(mount: Mounted, lazy: bool) -> None:
    point = os.fsdecode(mount.point)
    try:
        unmount(mount.point, detach=lazy)
    except FileNotFoundError:
        raise PyunionError(
            f"cannot unmount {point}: fusermount3 is not in PATH, and only root can do without it", ExitCode.MOUNT
        ) from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise PyunionError(f"{users.busy(mount)}; end these, or detach it with --lazy", ExitCode.BUSY) from None
        raise PyunionError(f"cannot unmount {point}: {error.strerror}", ExitCode.MOUNT) from None


def _wait_end(pid: int) -> bool:
    """Whether the process ends in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # before Linux 5.3
        return _watch_end(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(_PATIENCE_S * 1000))
    finally:
        os.close(fd)


def _watch_end(pid: int) -> bool:
    end = time.monotonic() + _PATIENCE_S
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True
