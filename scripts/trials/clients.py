"""Clients that are killed while the daemon works for them: it goes on, for them and for all others.

A client is a process that makes one operation; it dies when the daemon is at one of the system calls for it.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trials.operations import Operation
from trials.supervised import Supervised
from trials.union import TROUBLE, Home, Lost, State, calls_of, descriptors, left_in, more, reference, until, which

WATCHDOG_S = 10.0  # a daemon that answers nobody for so long is frozen


class Ended(NamedTuple):
    """One try: with the extension or without, the call that the daemon was at, and what was wrong."""

    extension: bool
    number: int
    lost: str


def walk(home: Home, operations: Sequence[Operation], tries: int, *, extension: bool) -> Iterator[Ended]:
    """Kill so many clients, each in an operation of its own, at calls from the first to the last."""
    chosen = [operation for operation in operations if extension or operation.bare]
    for number in range(tries):
        operation = chosen[number % len(chosen)]
        states, _ = reference(home, operation)
        at = 1 + number * 7 % len(calls_of(home, operation, answers=False, extension=extension))
        try:
            _kill(home, operation, states, at, extension)
            yield Ended(extension, at, "")
        except TROUBLE as error:
            yield Ended(extension, at, f"{operation.name}: {error}")


def _kill(home: Home, operation: Operation, states: Sequence[State], number: int, extension: bool) -> None:
    home.empty()
    daemon = home.pyunion(extension=extension)
    with home.mounted(daemon, operation.options) as at:
        operation.before(at)
        before = descriptors(daemon)
        reader, writer = os.pipe()
        client = os.fork()
        if client == 0:
            with suppress(OSError):
                os.read(reader, 1)
                for _ in operation.change(at):
                    pass
            os._exit(0)

        def kill() -> int:
            os.kill(client, signal.SIGKILL)
            return 0

        daemon.arm(number, kill, answers=False)
        os.write(writer, b"x")
        _await_end(client, daemon)
        daemon.disarm()
        os.close(reader)
        os.close(writer)
        until(lambda: not more(before, daemon), lambda: f"left open: {more(before, daemon)}")
        if not extension:
            _take_notes_off(at)
        now = which(home.seen(), states, range(len(states)), times=False, setid=operation.setid)
        if left := left_in(home.work):
            raise Lost(f"left in the work directory: {left}")
        if now == 0:
            for _ in operation.change(at):
                pass
    home.require_clean()


def _take_notes_off(at: Path) -> None:
    """With the writeback cache the kernel notes on a file that its times could not be sent, where the sender died, and
    the next close(2) of the file says EIO, once. With nowriteback it does not."""
    for path in at.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            with suppress(OSError):
                os.close(fd)


def _await_end(client: int, daemon: Supervised) -> None:
    """Raises Lost if the daemon keeps a dead client waiting."""
    fd = os.pidfd_open(client)
    try:
        if not select.select([fd], [], [], WATCHDOG_S)[0]:
            daemon.abandon()
            raise Lost(f"its client has not ended {WATCHDOG_S:g} s after its death")
    finally:
        os.close(fd)
        os.waitpid(client, 0)
