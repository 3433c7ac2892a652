"""Waiting for descriptors, of any number: select(2) knows none beyond 1023, and a long run of tests has some."""

from __future__ import annotations

import select


def readable(*fds: int, seconds: float) -> list[int]:
    """Those that can be read, or are at their end, as soon as one of them is; none after so long."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(seconds * 1000)]
