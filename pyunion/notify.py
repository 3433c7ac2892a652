"""Telling the service manager how we are: sd_notify(3), without a library.

Owns the protocol of NOTIFY_SOCKET. Outside of a service every call does nothing.
"""

from __future__ import annotations

import os
import socket


def wanted() -> bool:
    """Whether a service manager waits for READY=1."""
    return bool(os.environb.get(b"NOTIFY_SOCKET"))


def send(*assignments: str) -> bool:
    """Send assignments such as "READY=1"; False when nobody listens. Never raises: a service lives without it."""
    address = os.environb.get(b"NOTIFY_SOCKET", b"")
    if not address.startswith((b"/", b"@")):
        return False
    if address.startswith(b"@"):  # in the abstract name space
        address = b"\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect(address)
            connection.sendall(os.fsencode("\n".join(assignments)))
    except OSError:
        return False
    return True
