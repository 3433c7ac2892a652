"""Small unions on a file system of their own, and what they are held against: the kernel's overlayfs.

A state is the tree that a union shows, with the times of what was not changed. Knows how to mount, to look, and what
no mount may leave behind; not what happens in between.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.harness.files import is_whiteout
from tests.harness.mounts import KernelMount, Layers, Mount, MountRefused
from tests.harness.snapshot import Entry, Snapshot, differences, snapshot
from trials.operations import CACHED, OLD_S, Operation, fill
from trials.supervised import Supervised

State = Snapshot
# System calls that change a branch begin with one of these.
CHANGES = (
    *("mkdir", "mknod", "link", "symlink", "unlink", "rmdir", "rename", "open", "truncate", "ftruncate", "pwrite"),
    *("chmod", "fchmod", "chown", "fchown", "lchown", "setxattr", "lsetxattr", "fsetxattr", "removexattr"),
    *("lremovexattr", "fremovexattr", "utimensat", "fallocate", "copy_file_range", "ioctl"),
)
_SET_ID = 0o6000
_RECENT_NS = (OLD_S + 1000) * 10**9


class Lost(Exception):
    """What a fault has cost, in a sentence."""


# What a try can end with when something is lost: nothing of that may end the other tries.
TROUBLE = (Lost, AssertionError, OSError, MountRefused)


class Home:
    """A directory with lower branches for all tries, and room for one union at a time."""

    def __init__(self, base: Path, disk: Path | None = None) -> None:
        """With `disk`, the branches are there and only the mount point is in `base`."""
        self.base = base
        disk = disk or base
        self.lowers = [disk / "lower1", disk / "lower2"]
        for lower in self.lowers:
            lower.mkdir()
        fill(*self.lowers)
        self._before = [snapshot(lower) for lower in self.lowers]
        self.missing: Sequence[str] = ()  # what pyunion's kernel does not have, as tests.harness.old_system calls it
        self.at = base / "union"
        self.at.mkdir()
        self.upper, self.work = disk / "upper", disk / "work"
        self.layers = Layers(self.lowers, self.upper, self.work)

    def empty(self) -> None:
        """A new upper branch."""
        for path in (self.upper, self.work):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()

    @contextmanager
    def mounted(self, mount: Mount, options: Sequence[str]) -> Iterator[Path]:
        """The union; nothing stays mounted, whatever happens."""
        try:
            mount.start(self.layers, options)
            yield self.at
            if mount in Mount.live:
                mount.stop()
        except BaseException:
            mount.abandon()  # a program that was to mount may have done so, and been interrupted then
            raise

    def pyunion(self, *, extension: bool = True) -> Supervised:
        return Supervised(self.at, extension=extension, missing=self.missing)

    def kernel(self) -> KernelMount:
        return KernelMount(self.at)

    def clear_dead(self) -> None:
        """What a daemon that is dead has left mounted."""
        if subprocess.run(["umount", self.at], capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", self.at], check=True)
            raise Lost("the dead mount is in use")

    def seen(self) -> State:
        return {path: _normal(entry) for path, entry in snapshot(self.at).items()}

    def seen_read_only(self) -> State:
        """By the kernel, as layers; so looking changes nothing."""
        kernel = self.kernel()
        kernel.start(Layers([self.upper, *self.lowers]), ["metacopy=on"])
        try:
            return self.seen()
        finally:
            kernel.stop()

    def require_clean(self) -> None:
        """After an unmount: raises Lost for what is in the work directory, or changed in a lower branch."""
        left = left_in(self.work)
        if left:
            raise Lost(f"left in the work directory: {left}")
        for lower, before in zip(self.lowers, self._before, strict=True):
            if changed := differences(before, snapshot(lower)):
                raise Lost(f"{lower.name} was changed: {changed}")


def _normal(entry: Entry) -> Entry:
    """Of what is changed now, the time says nothing."""
    return entry if entry.mtime_ns < _RECENT_NS else entry._replace(mtime_ns=-1)


def left_in(work: Path) -> list[str]:
    """What should not be in a work directory: all but the index and whiteouts to make links of."""
    found = [Path(where) / name for where, _, names in os.walk(work) for name in names]
    directories = [path for path in (work / "work").iterdir() if path.is_dir()]
    kept = [path for path in found if not path.is_relative_to(work / "index") and not is_whiteout(path)]
    return [str(path.relative_to(work)) for path in (*kept, *directories)]


def reference(home: Home, operation: Operation) -> tuple[list[State], list[bool]]:
    """The states that an operation goes through on the kernel's overlayfs, and which of them last."""
    home.empty()
    with home.mounted(home.kernel(), ("index=on", *options_of_kernel(operation))) as at:
        operation.before(at)
        states, lasting = [home.seen()], [True]
        for kind in operation.change(at):
            states.append(home.seen())
            lasting.append(kind != CACHED)
    return states, lasting


def options_of_kernel(operation: Operation) -> tuple[str, ...]:
    return tuple(option for option in operation.options if option.startswith("metacopy"))


def which(seen: State, states: Sequence[State], allowed: range, times: bool = True, setid: bool = False) -> int:
    """Which of the allowed states this is, the last one that fits. Raises Lost. With `setid`, setuid and setgid may go
    before anything else does.

    The time of a directory in which a copy appears is put back a moment later, so it may be of now as well.
    """
    if setid:
        states = [_without_setid(state, seen) for state in states]
    if not times:
        seen, states = _timeless_state(seen), [_timeless_state(state) for state in states]
    nearest: list[str] = []
    for number in reversed(allowed):
        new = _strange_times(seen, [states[other] for other in allowed])
        new = new or differences(_without_times(seen), _without_times(states[number]))
        if not new:
            return number
        if not nearest or len(new) < len(nearest):
            nearest = new
    raise Lost(f"neither old nor new: {nearest[:6]}")


def _without_setid(state: State, seen: State) -> State:
    """A state in which setuid and setgid are gone where they were seen to be."""
    return {
        path: entry._replace(mode=entry.mode & (seen[path].mode | ~_SET_ID)) if path in seen else entry
        for path, entry in state.items()
    }


def _timeless_state(state: State) -> State:
    return {path: entry._replace(mtime_ns=-1) for path, entry in state.items()}


def _without_times(state: State) -> State:
    """Of directories."""
    return {path: entry._replace(mtime_ns=0) if entry.kind == "directory" else entry for path, entry in state.items()}


def _strange_times(seen: State, states: Sequence[State]) -> list[str]:
    return [
        f"{os.fsdecode(path)} is of {entry.mtime_ns}"
        for path, entry in seen.items()
        if entry.mtime_ns not in (-1, *(state[path].mtime_ns for state in states if path in state))
    ]


def descriptors(daemon: Supervised) -> list[str]:
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


def more(before: Sequence[str], daemon: Supervised) -> list[str]:
    """What it has open that it had not before."""
    return sorted((Counter(descriptors(daemon)) - Counter(before)).elements())


def calls_of(home: Home, operation: Operation, *, answers: bool, extension: bool = True) -> list[str]:
    """The system calls that an operation makes when nothing happens to it."""
    home.empty()
    daemon = home.pyunion(extension=extension)
    with home.mounted(daemon, operation.options) as at:
        operation.before(at)
        daemon.arm(0, lambda: 0, answers=answers)
        for _ in operation.change(at):
            pass
        return daemon.disarm()


def sample(numbers: Sequence[int], most: int) -> list[int]:
    """So many of them, the last one among them, spread evenly."""
    return sorted({numbers[-1 - len(numbers) * at // most] for at in range(most)}) if numbers else []


def until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 3) -> None:
    """For what the kernel does a moment later, as it tells of closed files. Raises Lost with what is wrong."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Lost(what())
        os.sched_yield()
