"""A branch call that fails, at any point of an operation.

The caller hears that errno, or the change is made all the same; what had been done is undone; nothing is left in the
work directory, no descriptor stays open, the daemon lives, and the same operation can be made afterwards.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trials.operations import Operation
from trials.supervised import Supervised
from trials.union import Home, Lost, State, left_in, reference, until, which

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EROFS)


class Failed(NamedTuple):
    """One try: the call that failed, how, what the caller heard ("" for success), and what was lost."""

    number: int
    call: str
    error: str
    heard: str
    lost: str


def walk(home: Home, operation: Operation, errors: Sequence[int] = ERRORS, every: int = 1) -> Iterator[Failed]:
    """Let each `every`th call of the operation fail with each errno, until it ends before that call."""
    states, lasting = reference(home, operation)
    for error in errors:
        number = 1
        while failed := _fail(home, operation, number, error, states, lasting):
            yield failed
            number += every


def _fail(
    home: Home, operation: Operation, number: int, error: int, states: Sequence[State], lasting: Sequence[bool]
) -> Failed | None:
    """None if the operation does not make that many calls."""
    home.empty()
    daemon = home.pyunion()
    heard, calls, lost = "", [""] * number, ""
    try:
        with home.mounted(daemon, operation.options) as at:
            operation.before(at)
            before = _descriptors(daemon)
            daemon.arm(fail_at=number, error=error)
            done, got = _run(operation, at)
            calls = daemon.disarm()
            heard = errno.errorcode[got] if got else ""
            if got not in (0, error):
                raise Lost(f"the caller hears {heard}")
            if len(calls) < number:
                if got:
                    raise Lost("the operation failed though nothing was wrong")
                return None
            allowed = range(max(step for step in range(done + 1) if lasting[step]), done + 1)
            end = _require_whole(home, operation, states, allowed, daemon, before)
        if not daemon.says_what_is_left():
            home.require_clean()
        if not operation.indexed:
            which(home.seen_read_only(), states, end, operation.times)
    except (Lost, AssertionError) as fault:
        lost = str(fault)
    call = calls[number - 1] if len(calls) >= number else "?"
    return Failed(number, call, errno.errorcode[error], heard, lost)


def _run(operation: Operation, at: Path) -> tuple[int, int]:
    """How many steps succeeded, and the errno of the one that did not."""
    done = 0
    try:
        for _ in operation.change(at):
            done += 1
    except OSError as failure:
        return done, failure.errno or -1
    return done, 0


def _require_whole(
    home: Home, operation: Operation, states: Sequence[State], allowed: range, daemon: Supervised, before: list[str]
) -> range:
    """Raises Lost; the state that the union is in at last."""
    now = which(home.seen(), states, allowed, operation.times)
    left = left_in(home.work)
    if left and not daemon.says_what_is_left():
        raise Lost(f"left in the work directory: {left}")
    until(lambda: _descriptors(daemon) == before, lambda: f"{before} were open, and {_descriptors(daemon)} are")
    if now == 0:
        _, got = _run(operation, home.at)
        if got:
            raise Lost(f"the operation cannot be made again: {errno.errorcode[got]}")
        now = len(states) - 1
        which(home.seen(), states, range(now, now + 1), operation.times)
    else:
        (home.at / "alive").mkdir()
        (home.at / "alive").rmdir()
    return range(now, now + 1)


def _descriptors(daemon: Supervised) -> list[str]:
    """What the daemon has open of the branches, but for the directories that it keeps for later (they are O_PATH)."""
    held = []
    base = Path(f"/proc/{daemon.pid}")
    for name in os.listdir(base / "fd"):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            target = os.readlink(base / "fd" / name).split(" (deleted)")[0]
            flags = int((base / "fdinfo" / name).read_text().split("flags:\t")[1].split("\n")[0], 8)
            kept = flags & os.O_PATH and flags & os.O_DIRECTORY
            if not kept and Path(target).is_relative_to(daemon.point.parent):
                held.append(target)
    return sorted(held)
