"""A branch call that fails, at any point of an operation.

The caller hears that errno, or the change is made all the same; what had been done is undone; nothing is left in the
work directory, no descriptor stays open, the daemon lives, and the same operation can be made afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trials.operations import Operation
from trials.supervised import Supervised
from trials.union import (
    TROUBLE,
    Home,
    Lost,
    State,
    calls_of,
    descriptors,
    left_in,
    more,
    reference,
    sample,
    until,
    which,
)

# Of these the kernel may say EMFILE. Who hears it begins the request again with fewer descriptors (rawops), which would
# be too late after a call that changes something.
_OPENS = frozenset(
    {"open", "openat", "open_by_handle_at", "open_tree", "dup", "fcntl", "pipe2", "socket", "memfd_create"}
)
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EROFS)


class Failed(NamedTuple):
    """One try: the call that failed, how, what the caller heard ("" for success), and what was lost."""

    number: int
    call: str
    error: str
    heard: str
    lost: str


def walk(
    home: Home, operation: Operation, errors: Sequence[int] = ERRORS, most: int | None = None
) -> Iterator[Failed]:
    """Let each call of the operation fail with each errno; with `most`, so many calls, each with one of them."""
    states, lasting = reference(home, operation)
    made = calls_of(home, operation, answers=False)
    numbers = range(1, len(made) + 1)
    possible = {
        number: [error for error in errors if error != errno.EMFILE or call in _OPENS]
        for number, call in zip(numbers, made, strict=True)
    }
    tries = [(number, error) for number in numbers for error in possible[number]]
    if most is not None:
        first = [number for number in numbers if possible[number] and made.index(made[number - 1]) == number - 1]
        tries = [(number, possible[number][number % len(possible[number])]) for number in sample(first, most)]
    for number, error in tries:
        failed = _fail(home, operation, number, error, states, lasting)
        if failed is not None:
            yield failed


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
            before = descriptors(daemon)
            daemon.arm(number, lambda: error, answers=False)
            done, got = _run(operation, at)
            calls = daemon.disarm()
            heard = errno.errorcode[got] if got else ""
            if got not in (0, error):
                raise Lost(f"the caller hears {heard}")
            if len(calls) < number:
                if got:
                    raise Lost("the operation failed though nothing was wrong")
                return None
            made = bool(got) and calls[number - 1] in operation.told
            allowed = range(max(step for step in range(done + 1) if lasting[step]), done + 1 + made)
            end = _require_whole(home, operation, states, allowed, daemon, before)
        if not daemon.says_what_is_left():
            home.require_clean()
        if not operation.indexed:
            which(home.seen_read_only(), states, end, operation.times, operation.setid)
    except TROUBLE as fault:
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
    now = which(home.seen(), states, allowed, operation.times, operation.setid)
    left = left_in(home.work)
    if left and not daemon.says_what_is_left():
        raise Lost(f"left in the work directory: {left}")
    until(lambda: not more(before, daemon), lambda: f"left open: {more(before, daemon)}")
    if now == 0:
        _, got = _run(operation, home.at)
        if got:
            raise Lost(f"the operation cannot be made again: {errno.errorcode[got]}")
        now = len(states) - 1
        which(home.seen(), states, range(now, now + 1), operation.times, operation.setid)
        return range(now, now + 1)
    (home.at / "alive").mkdir()
    (home.at / "alive").rmdir()
    return range(allowed.start, now + 1)  # what is only cached may not come to the disk
