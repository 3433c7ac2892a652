"""Waiting: for descriptors, and for what no descriptor tells of."""

from __future__ import annotations

import select
import time
from collections.abc import Callable


def readable(*fds: int, seconds: float) -> list[int]:
    """Those that can be read, or are at their end, as soon as one of them is; none after so long. Of any number:
    select(2) knows none beyond 1023, and a long run of tests has some."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(seconds * 1000)]


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """For what the kernel, or a thread of the daemon, does a moment later and tells nobody. AssertionError with what is
    wrong after so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
