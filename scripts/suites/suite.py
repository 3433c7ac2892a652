"""What a suite is, what it is asked to do, and what they all need: processes with a time limit, and unmounting.

Knows none of the suites.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.harness.mounts import REPOSITORY, mounted

SIDES = ("pyunion", "kernel")
# A test's name, the same on both sides and in all runs, and why it failed: "" if it did not.
Outcome = tuple[str, str]


class Job(NamedTuple):
    """One run: of one mode of a suite, on one side."""

    checkout: Path
    base: Path  # an empty directory of its own
    side: str
    mode: str
    quick: bool
    minutes: float
    tests: Sequence[str]  # only these, where a suite can choose; all if empty

    def directory(self, name: str) -> Path:
        path = self.base / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, name: str) -> Path:
        return self.directory("logs") / name.replace("/", "_")

    def test(
        self,
        name: str,
        command: Sequence[str | Path],
        cwd: Path,
        *,
        seconds: float,
        env: Mapping[str, str] | None = None,
        stop_by: int = signal.SIGKILL,
    ) -> str:
        """Run a command with its output in log(name); why it failed, or "" if it did not."""
        with self.log(name).open("wb") as out:
            process = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:g} seconds"
        finally:
            if process.poll() is None:
                _stop(process, stop_by)
        lines = self.log(name).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output") if code else ""


class Suite(NamedTuple):
    name: str
    variable: str  # of the environment: where its checkout is
    url: str
    program: str  # what is in a checkout that can be used
    modes: tuple[str, ...]
    run: Callable[[Job], Iterable[Outcome]]


def _stop(process: subprocess.Popen[bytes], by: int) -> None:
    """End a command with everything that it has started."""
    for number in (by, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(30)
            return
        except subprocess.TimeoutExpired:
            continue


def _mounts_below(top: Path) -> list[Path]:
    """The last one first."""
    points = [Path(os.fsdecode(mount.point)) for mount in reversed(mounted())]
    return [point for point in points if point.is_relative_to(top)]


def clear(top: Path) -> None:
    """Unmount all that is mounted on a directory or below it; what stays busy is detached."""
    deadline = time.monotonic() + 5
    while any(subprocess.run(["umount", point], capture_output=True).returncode for point in _mounts_below(top)):
        if time.monotonic() > deadline:
            for point in _mounts_below(top):
                subprocess.run(["umount", "--lazy", point])
        time.sleep(0.25)


def environment(job: Job, **more: str | Path) -> dict[str, str]:
    """For suites that mount by themselves: "mount -t fuse.pyunion" is this checkout's pyunion there.

    A program `mount` stands first in PATH, so that nothing is installed on the machine.
    """
    stand_in = job.directory("bin") / "mount"
    script = Path(__file__).with_name("stand_in.py")
    stand_in.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} {script} "$@"\n')
    stand_in.chmod(0o755)
    return {
        # Suites in Python have modules of the same names as ours.
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",  # the checkouts are not ours to write to
        **{name: str(value) for name, value in more.items()},
    }
