"""Where a daemon's control socket is: nowhere by name. It is found as the board is, among the daemon's descriptors.

Owns the two forms of it. A socket is bound in any directory that can be written for the moment, and its name is removed
at once: it is reached by the magic link /proc/PID/fd/N of an O_PATH descriptor (proc_pid_fd(5)), from every mount and
network namespace that shows the daemon's /proc/PID, and nothing is left behind however the daemon ends. Only those may
follow the link who may look into the daemon. Where no directory can be written, the socket has an abstract name
(unix(7)), which is good in the daemon's network namespace only.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
import struct
import tempfile
from contextlib import ExitStack

_PLACES = ("/run", "/dev/shm", "/tmp", "/var/tmp")
_BACKLOG = 16
# What the board says of the socket: the number of the O_PATH descriptor, or an abstract name without its zero byte.
Published = int | str


def listen(stack: ExitStack) -> tuple[socket.socket, Published]:
    """A listening socket, closed by `stack`, and what the board has to say of it."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    published: Published | None = None
    for place in _PLACES:
        with contextlib.suppress(OSError):
            published = _bind_nameless(listener, place)
            stack.callback(os.close, published)
            break
    else:
        published = f"pyunion-{secrets.token_hex(8)}"
        listener.bind("\0" + published)
    listener.listen(_BACKLOG)
    return listener, published


def _bind_nameless(listener: socket.socket, place: str) -> int:
    with tempfile.TemporaryDirectory(prefix="pyunion-", dir=place) as folder:  # nobody else may enter it
        path = os.path.join(folder, "control")
        listener.bind(path)
        os.chmod(path, 0o600)
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def connect(pid: int, published: Published, timeout: float) -> socket.socket:
    """A connection to the daemon `pid`; `timeout` in seconds holds for each call on it. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # connect(2) waits for its turn only on a socket that blocks, for as long as sends may take
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", math.ceil(timeout), 0))
        named = isinstance(published, str)
        connection.connect(f"\0{published}" if named else f"/proc/{pid}/fd/{published}")
        connection.settimeout(timeout)
    except BaseException:
        connection.close()
        raise
    return connection
