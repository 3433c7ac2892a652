"""Telling the service manager how we are: sd_notify(3) and sd_watchdog_enabled(3), without a library.

Owns the protocol of NOTIFY_SOCKET, and which news of a mount there are. Outside of a service every call does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from pyunion.errors import printable


class Listener:
    """Somebody who waits for a mount to answer, and for no other news of it."""

    ping_s: float | None = None  # alive() is to be called this often

    def __init__(self, ready: Callable[[], None]) -> None:
        self.ready = ready

    def busy(self, sentence: str) -> None:
        """The mount has been asked to end, and cannot yet."""

    def stopping(self) -> None:
        """The mount has begun to end."""

    def alive(self) -> None:
        """The loop that answers requests goes round."""


class ServiceManager(Listener):
    """The service manager, which shows the last STATUS= to those who ask it how the service is."""

    def __init__(self, mountpoint: str) -> None:
        super().__init__(lambda: _tell("READY=1", f"STATUS=mounted on {mountpoint}"))
        self._mountpoint = mountpoint
        self.ping_s = _ping_s()

    def busy(self, sentence: str) -> None:
        _tell(f"STATUS={sentence}")

    def stopping(self) -> None:
        _tell("STOPPING=1", f"STATUS=unmounting {self._mountpoint}")

    def alive(self) -> None:
        _tell("WATCHDOG=1")


def wanted() -> bool:
    """Whether a service manager waits for READY=1."""
    return bool(os.environb.get(b"NOTIFY_SOCKET"))


def send(*assignments: str) -> bool:
    """Send assignments such as "READY=1"; False when nobody listens. Never raises: a service lives without it.

    A name in one, which may be any bytes, does not begin another.
    """
    address = os.environb.get(b"NOTIFY_SOCKET", b"")
    if not address.startswith((b"/", b"@")):
        return False
    if address.startswith(b"@"):  # in the abstract name space
        address = b"\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect(address)
            connection.sendall("\n".join(map(printable, assignments)).encode())
    except OSError:
        return False
    return True


def _tell(*assignments: str) -> None:
    send(*assignments)


def _ping_s() -> float | None:
    """Half of the time after which the service manager takes us for hung; None if it does not watch this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 2_000_000
