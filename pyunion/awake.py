"""Keeps the processors of a virtual machine awake while requests come in quick succession.

A virtual processor that has nothing to do goes back to the host, and to wake it takes several times as long as most
requests. With each request the client's processor waits for the daemon, and then the daemon's for the client. The
kernel's idle governor for virtual machines, haltpoll, lets an idle processor look for work instead while somebody asks
for a latency of zero (Documentation/power/pm_qos_interface.rst). Owns that wish, a descriptor of /dev/cpu_dma_latency,
and when it is worth it: it counts for the whole machine, so it ends soon after the requests do, and with the process.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from contextlib import suppress

log = logging.getLogger(__name__)

SPAN_S = 0.004  # so long is counted
DENSE_HZ = 1000  # requests that are worth it
QUIET_S = 0.01  # without any, it is over

_GOVERNOR = "/sys/devices/system/cpu/cpuidle/current_governor"
_LATENCY = "/dev/cpu_dma_latency"
_NONE = struct.pack("=i", 0)  # us
_ANY = struct.pack("=i", 2000 * 10**6)  # PM_QOS_CPU_LATENCY_DEFAULT_VALUE

_clock = time.perf_counter


class Awake:
    """The wish, made and taken back as requests come and go. Without a descriptor (-1) nothing happens."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._requests = 0
        self._since = _clock()
        self.held = False

    def note(self, requests: int) -> None:
        """So many have come since the last time."""
        self._requests += requests
        now = _clock()
        if now - self._since < SPAN_S:
            return
        if self._requests >= (now - self._since) * DENSE_HZ:
            if not self.held:
                self._ask_for(_NONE)
        else:
            self.release()
        self._requests, self._since = 0, now

    def release(self) -> None:
        """Processors may sleep again."""
        if self.held:
            self._ask_for(_ANY)

    def _ask_for(self, latency: bytes) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, latency)
            self.held = latency == _NONE
        except OSError as error:
            log.warning("%s: %s; processors sleep as they like", _LATENCY, error.strerror)
            self.close()

    def close(self) -> None:
        """Take it back for good."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self.held = -1, False


def problem() -> str | None:
    """Why processors are not kept awake on this machine; None if they are, by root."""
    try:
        with open(_GOVERNOR, encoding="ascii") as governor:
            name = governor.read().strip()
    except OSError:
        name = ""
    if name != "haltpoll":
        return "its idle governor is not haltpoll, which virtual machines have"
    return None if os.path.exists(_LATENCY) else f"{_LATENCY} is missing"


def open_latency() -> int:
    """A descriptor for Awake where it is worth it and we may; else -1."""
    if problem() is None:
        with suppress(OSError):
            return os.open(_LATENCY, os.O_WRONLY | os.O_CLOEXEC)
    return -1
