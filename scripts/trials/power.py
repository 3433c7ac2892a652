"""A power cut: the disk with all branches stops with nothing flushed, is recovered by its journal, and looked at.

What was synced through the mount is there. Of the rest any number of steps, in their order, was made; each is all or
nothing. Lower branches are on the same disk, so that copies share blocks with them where the file system can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pyunion.branch.syscalls import syncfs
from tests.harness.filesystems import cut_power, loop_mounted, power_up
from tests.harness.mounts import Mount
from trials.kills import look
from trials.operations import SYNCED, Operation
from trials.supervised import ANSWERS
from trials.union import CHANGES, TROUBLE, Home, State, calls_of, reference, sample

KINDS = ("xfs", "ext4")
# What opens a file or asks for its flags mostly changes nothing.
_TELLING = ("fsync", "fdatasync", *(call for call in CHANGES if call not in ("open", "ioctl")))


class Machine(NamedTuple):
    """Room for one union on a disk of its own."""

    home: Home
    kind: str
    disk: Path

    def settle(self) -> None:
        """What was done so far is on the disk."""
        fd = os.open(self.disk, os.O_RDONLY)
        try:
            syncfs(fd)
        finally:
            os.close(fd)

    @contextmanager
    def mounted(
        self, mount: Mount, options: Sequence[str] = (), before: Callable[[Path], object] = lambda at: None
    ) -> Iterator[Path]:
        """The union, with what was made `before` on disk. The power goes in the context, and is back after it."""
        self.home.empty()
        self.settle()
        try:
            with self.home.mounted(mount, options) as at:
                before(at)
                self.settle()
                yield at
        finally:
            power_up(self.kind, self.disk)


class Cut(NamedTuple):
    """One try: when the power went, and what was lost."""

    when: str
    lost: str


@contextmanager
def machine(kind: str, base: Path) -> Iterator[Machine]:
    """A machine whose disk is of this kind; its image is in `base`."""
    with loop_mounted(kind, base / kind) as disk:
        union = base / f"on-{kind}"
        union.mkdir()
        one = Machine(Home(union, disk), kind, disk)
        one.settle()
        yield one


def walk(one: Machine, operation: Operation, most: int | None = None) -> Iterator[Cut]:
    """Cut the power at each call of the operation before which something was changed or synced, and at each answer,
    once with and once without what the journal has in memory; with `most`, at so many of them. And after each step,
    when what it has changed was synced."""
    states, lasting = reference(one.home, operation)
    operation = operation._replace(times=operation.times and all(lasting))  # they can come to the disk before data do
    made = calls_of(one.home, operation, answers=True)
    after = list(zip(made, ("", *made), strict=False))
    telling = [at for at, (call, last) in enumerate(after, 1) if call in ANSWERS or last.startswith(_TELLING)]
    for number in telling if most is None else sample(telling, most):
        for journal in (False, True):
            lost = _told(_cut_at_call, one, operation, states, number, journal, lasting)
            yield Cut(f"at call {number}, {made[number - 1]}, the journal {'written' if journal else 'lost'}", lost)
    for step in range(1, len(states)):
        yield Cut(f"after step {step} was synced", _told(_cut_after_sync, one, operation, states, step, lasting))


def _told(attempt: Callable[..., None], *arguments: object) -> str:
    try:
        attempt(*arguments)
    except TROUBLE as error:
        return str(error)
    return ""


def _cut_at_call(
    one: Machine, operation: Operation, states: Sequence[State], number: int, journal: bool, lasting: Sequence[bool]
) -> None:
    daemon = one.home.pyunion()
    done = durable = 0

    def cut() -> int:
        # of data that are not synced a part may be there when the journal is, on any file system
        cut_power(one.disk, journal_written=journal and all(lasting[durable + 1 : done + 2]))
        return 0

    with one.mounted(daemon, operation.options, operation.before) as at:
        daemon.arm(number, cut, answers=True)
        with suppress(OSError):
            for kind in operation.change(at):
                done += 1
                durable = done if kind == SYNCED else durable
        if len(daemon.disarm()) < number:  # it may make some calls less
            cut()
    look(one.home, operation, states, range(durable, min(done + 2, len(states))), kernel_first=number % 2 == 0)


def _cut_after_sync(
    one: Machine, operation: Operation, states: Sequence[State], step: int, lasting: Sequence[bool]
) -> None:
    with one.mounted(one.home.pyunion(), operation.options, operation.before) as at:
        steps = operation.change(at)
        kind = [next(steps) for _ in range(step)][-1]
        if kind != SYNCED:
            _sync(at, states[0], states[step], data=not all(lasting[: step + 1]))
        cut_power(one.disk, journal_written=False)
        with suppress(OSError):
            steps.close()  # type: ignore[attr-defined]
    look(one.home, operation, states, range(step, step + 1), kernel_first=step % 2 == 0)


def _sync(at: Path, before: State, after: State, *, data: bool) -> None:
    """What a careful program syncs: objects that were changed, and the directories of names that came or went; with
    `data`, new files too."""
    for path in sorted({*before, *after}):
        if before.get(path) == after.get(path):
            continue
        place, parent = at / os.fsdecode(path), os.path.dirname(path) or b"."
        came_or_went = path not in before or path not in after
        if came_or_went and parent in before and parent in after:
            fsync(place.parent)
        if path in after and after[path].kind in ("file", "directory") and (data or not came_or_went):
            fsync(place)
        elif not came_or_went:
            fsync(place.parent)  # what cannot be opened without effect


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
