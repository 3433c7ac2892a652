"""A system call that a signal interrupts is made again, and nobody hears of it."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path

from pyunion.branch import syscalls


def test_a_call_goes_on_after_a_signal(tmp_path: Path) -> None:
    """flock(2), which waits as long as it takes, stands for calls on a file system that can be interrupted."""
    flock = syscalls._libc.flock
    holder = os.open(tmp_path, os.O_RDONLY)
    waiter = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    signals: list[int] = []

    def handle(number: int, _: object) -> None:
        signals.append(number)
        if len(signals) == 3:
            fcntl.flock(holder, fcntl.LOCK_UN)

    before = signal.signal(signal.SIGUSR1, handle)
    main = threading.main_thread().ident
    assert main is not None
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.01):
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert syscalls._call(flock, waiter, fcntl.LOCK_EX) == 0
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(waiter)
        os.close(holder)
    assert len(signals) >= 3
