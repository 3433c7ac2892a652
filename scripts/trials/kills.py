"""A daemon that is killed at one of its system calls, and what is there after it.

Each step of an operation was made or not; what had succeeded is there. Both pyunion and the kernel mount what was
left, and the operation can be finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from trials.operations import CACHED, SYNCED, Operation
from trials.union import CHANGES, TROUBLE, Home, Lost, State, calls_of, options_of_kernel, reference, sample, which


class Killed(NamedTuple):
    """One try: the call that it was killed at, and what was lost."""

    number: int
    call: str
    lost: str


def walk(home: Home, operation: Operation, most: int | None = None) -> Iterator[Killed]:
    """Kill at the first call, at the second, and so on to the last answer; with `most`, at so many of those calls
    before which something was changed."""
    states, lasting = reference(home, operation)
    made = calls_of(home, operation, answers=True)
    numbers = range(1, len(made) + 1)
    telling = [number for number in numbers if number > 1 and made[number - 2].startswith(CHANGES)]
    for number in numbers if most is None else sample(telling, most):
        calls: list[str] = []
        try:
            died = _kill(home, operation, number, states, lasting, calls)
            lost = ""
        except TROUBLE as error:
            died, lost = True, str(error)
        if died:  # it made as many calls as before
            yield Killed(number, calls[-1] if calls else "?", lost)


def _kill(
    home: Home, operation: Operation, number: int, states: Sequence[State], lasting: Sequence[bool], calls: list[str]
) -> bool:
    """Whether the operation made that many calls."""
    home.empty()
    daemon = home.pyunion()
    with home.mounted(daemon, operation.options) as at:
        operation.before(at)
        daemon.arm(number, daemon.die, answers=True)
        done = 0
        steps = operation.change(at)
        with suppress(OSError):
            for _ in steps:
                done += 1
        calls += daemon.disarm()
        if len(calls) < number:
            if done != len(states) - 1:
                raise Lost(f"the operation failed at step {done + 1} though nothing was wrong")
            return False
        daemon.await_death()
    home.clear_dead()
    durable = max(step for step in range(done + 1) if lasting[step])
    allowed = range(durable, min(done + 2, len(states)))
    look(home, operation, states, allowed, kernel_first=number % 2 == 0)
    return True


def look(home: Home, operation: Operation, states: Sequence[State], allowed: range, kernel_first: bool) -> None:
    """By the kernel, which changes nothing; then by both, each mounting what the other has left. Raises Lost."""
    if not operation.indexed:
        seen = _without_links(home.seen_read_only())
        now = _named("the kernel, read-only", seen, [_without_links(state) for state in states], allowed, operation)
        allowed = range(now, now + 1)
    mounts = [("pyunion", home.pyunion(), operation.options), ("the kernel", home.kernel(), _kernel_options(operation))]
    for who, mount, options in reversed(mounts) if kernel_first else mounts:
        with home.mounted(mount, options) as at:
            now = _named(who, home.seen(), states, allowed, operation)
            allowed = range(now, now + 1)
            if who == "pyunion" and now == 0:
                _finish(operation, at)
                now = len(states) - 1
                allowed = range(now, now + 1)
                _named("pyunion, after the operation was made again", home.seen(), states, allowed, operation)
        if who == "pyunion":
            home.require_clean()


def _without_links(state: State) -> State:
    """Until the work directory is emptied a new name may have a second link there."""
    return {path: entry._replace(nlink=0) for path, entry in state.items()}


def _finish(operation: Operation, at: object) -> None:
    try:
        for kind in operation.change(at):  # type: ignore[arg-type]
            assert kind in (None, CACHED, SYNCED)
    except OSError as error:
        raise Lost(f"the operation cannot be made again: {error}") from None


def _kernel_options(operation: Operation) -> tuple[str, ...]:
    return ("index=on", *options_of_kernel(operation))


def _named(who: str, seen: State, states: Sequence[State], allowed: range, operation: Operation) -> int:
    try:
        return which(seen, states, allowed, operation.times, operation.setid)
    except Lost as error:
        raise Lost(f"seen by {who}: {error}") from None
