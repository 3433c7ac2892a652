"""Descriptors of lower branches through which nothing can be changed, by construction.

Owns the two ways to get one: a detached read-only clone of the branch's mount (Linux 5.12), or else a read-only bind
mount in a mount namespace of a child, whose descriptor outlives the child. Knows nothing of what is in a branch.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from pyunion.branch import syscalls
from pyunion.errors import ExitCode, PyunionError

log = logging.getLogger(__name__)

# ENOSYS before Linux 5.12; EPERM without CAP_SYS_ADMIN, or from a seccomp filter; EINVAL in another namespace's mount
_NO_CLONE = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
_PATH_DIR = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_readonly(paths: Sequence[bytes], stack: ExitStack) -> list[int]:
    """A descriptor for each branch, closed by `stack`. Raises PyunionError naming the branch that fails.

    Where the kernel offers neither way the branches are opened as they are, which is logged once.
    """
    fds: list[int] = []
    for path in paths:
        try:
            fd = syscalls.open_readonly_clone(os.path.join(path, b""))  # the slash: nothing but a directory will do
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise _cannot_open(path, error) from None
            log.debug("no read-only clone of %r: %s", path, error.strerror)
            break
        stack.callback(os.close, fd)
        fds.append(fd)
    if len(fds) < len(paths):
        fds += _open_by_bind(paths[len(fds) :], stack)
    return fds


def _open_by_bind(paths: Sequence[bytes], stack: ExitStack) -> list[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _bind_all(paths, theirs)
        finally:
            os._exit(0)
    theirs.close()
    fds: list[int] = []
    with ours:
        for path in paths:
            data, received, _, _ = socket.recv_fds(ours, 16, 1)
            if received:
                os.set_inheritable(received[0], False)
                fd = received[0]
            elif data in (b"", b"%d" % errno.EPERM):
                log.warning("the kernel gives no read-only view of the lower branches; they are opened as they are")
                fd = _open_plainly(path)
            else:
                os.waitpid(child, 0)
                raise _cannot_open(path, OSError(int(data), os.strerror(int(data))))
            stack.callback(os.close, fd)
            fds.append(fd)
    os.waitpid(child, 0)
    return fds


def _bind_all(paths: Sequence[bytes], to: socket.socket) -> None:
    """In the child: one descriptor, or one errno, for each path."""
    namespace_error = _try(syscalls.enter_private_mount_namespace)
    for path in paths:
        error = namespace_error or _try(partial(syscalls.bind_readonly, os.path.join(path, b"")))
        if error:
            to.send(b"%d" % error)
        else:
            fd = os.open(path, _PATH_DIR)
            socket.send_fds(to, [b"ok"], [fd])
            os.close(fd)


def _try(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _open_plainly(path: bytes) -> int:
    try:
        return os.open(path, _PATH_DIR)
    except OSError as error:
        raise _cannot_open(path, error) from None


def _cannot_open(path: bytes, error: OSError) -> PyunionError:
    return PyunionError(f"cannot open the branch {os.fsdecode(path)}: {error.strerror}", ExitCode.BRANCH)
