"""umount(2), or fusermount3 where we may not do that ourselves.

Owns the one way in which a mount of ours is taken away, by the daemon on a signal and by `pyunion umount`. Knows
nothing of who uses the mount.
"""

from __future__ import annotations

import errno
import os
import subprocess

from pyunion.branch import syscalls

_UMOUNT_NOFOLLOW = 8


def unmount(point: bytes, *, detach: bool) -> None:
    """Take a FUSE mount away; with `detach` it goes from the tree at once, and for good when nobody uses it any more.

    Blocks until the kernel has written back what it holds. Raises OSError: EBUSY while the mount is in use, EINVAL
    where nothing is mounted, EPERM with a sentence of fusermount3's, FileNotFoundError where that is not installed.
    """
    try:
        syscalls.umount2(point, _UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if detach else 0))
        return
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    command = [b"fusermount3", b"-u", *([b"-z"] if detach else []), b"--", point]
    environment = {**os.environ, "LC_ALL": "C"}  # so that it names errors as we do
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
    if done.returncode:
        busy = os.fsencode(os.strerror(errno.EBUSY)) in done.stderr
        raise OSError(errno.EBUSY if busy else errno.EPERM, os.fsdecode(done.stderr.strip()), point)
