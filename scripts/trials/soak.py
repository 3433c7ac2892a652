"""A union under mixed load for a while: it answers all the time, and afterwards everything is as at the start.

The load is copy_up, rename, listing and removal by many processes, of which some are killed again and again;
stress-ng's stressors of files; and fsstress, where the environment variable XFSTESTS_DIR names a built checkout.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from tests.harness.files import write
from tests.harness.mounts import Layers, Mount, PyunionMount
from trials import stopping
from trials.union import TROUBLE, Home, Lost, left_in, until

ANSWER_S = 1.0  # so soon the mount answers, whatever the load
MEMORY_KIB = 64 << 10  # so much more may be resident at the end: what Python's allocator does not give back
CLIENTS = 8
_LIFE_S = 0.5  # a client is killed about so often
_FILES = 200
_STRESSORS = ("dir", "dentry", "filename", "getdent", "hdd", "link", "rename", "symlink", "touch", "xattr")
_MOMENT_S = 0.05  # between two looks whether it answers
_IDLE_S = 15.0  # trio's threads end 10 s after their last work


def walk(home: Home, minutes: float) -> Iterator[tuple[str, str]]:
    """Each thing that had to hold, and what was wrong with it."""
    lower = home.base / "load"
    for number in range(_FILES):
        write(lower / f"tree/d{number % 20}/f{number}", "x" * (number * 50))
    (lower / "others").mkdir()
    home.empty()
    mount = PyunionMount(home.at)
    try:
        mount.start(Layers([lower, *home.lowers], home.upper, home.work))
        yield from _soak(home, mount, minutes)
        mount.stop()
    except TROUBLE as error:
        yield "load", str(error)
    finally:
        if mount in Mount.live:
            mount.abandon()
    yield "work directory", f"left: {left}" if (left := left_in(home.work)) else ""


def _soak(home: Home, mount: PyunionMount, minutes: float) -> Iterator[tuple[str, str]]:
    _use(home.at, random.Random(0), _FILES)  # what is made once and kept
    _forget(home.at)
    before = {name: measure(mount) for name, measure in MEASURES.items()}
    end = time.monotonic() + minutes * 60
    watch = _Watch(home.at)
    try:
        killed = _load(home.at, end)
    finally:
        slowest, late = watch.stop()
    yield f"{killed} clients killed, {slowest:.2f} s for the slowest answer on a machine late by {late:.2f} s", (
        f"that is more than {ANSWER_S:g} s of ours" if slowest > ANSWER_S + late else ""
    )
    subprocess.run(["rm", "-rf", *home.at.iterdir()], check=True)
    _forget(home.at)
    for name, measure in MEASURES.items():
        most = before[name] + (MEMORY_KIB if measure is _resident_kib else 0)
        yield name, _grown(lambda: measure(mount), most)  # noqa: B023 - it is called at once


def _grown(measure: Callable[[], int], most: int) -> str:
    """What has not come back to the start; threads and the kernel take a moment."""
    try:
        until(lambda: measure() <= most, lambda: f"{measure()}, where {most} may be", _IDLE_S)
    except Lost as lost:
        return str(lost)
    return ""


def _load(at: Path, end: float) -> int:
    """Until the end; how many clients were killed."""
    left = f"{max(1, int(end - time.monotonic()))}s"
    scratch = at / "others"
    stress: list[str | Path] = ["stress-ng", "--temp-path", scratch, "--timeout", left, "--quiet"]
    programs = [subprocess.Popen([*stress, *(word for name in _STRESSORS for word in (f"--{name}", "1"))])]
    if checkout := os.environ.get("XFSTESTS_DIR"):
        (at / "fsstress").mkdir()
        program = Path(checkout) / "ltp/fsstress"
        words = ["timeout", left, program, "-d", at / "fsstress", "-n", "1000000", "-l", "0", "-p", "2"]
        programs.append(subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL))
    chance = random.Random(1)
    clients: list[int] = []
    killed = 0
    try:
        while time.monotonic() < end and not stopping.asked():
            while len(clients) < CLIENTS:
                clients.append(_client(at, chance.random()))
            time.sleep(_LIFE_S / CLIENTS)
            _end(clients.pop(chance.randrange(CLIENTS)))
            killed += 1
            if any(running.poll() not in (None, 0, 124) for running in programs):  # 124: timeout(1) has ended it
                raise Lost("a program that makes the load has failed")
    finally:
        for client in clients:
            _end(client)
        for running in programs:
            running.terminate()
            running.wait()
    return killed


def _client(at: Path, seed: float) -> int:
    child = os.fork()
    if child == 0:
        with suppress(KeyboardInterrupt):
            _use(at, random.Random(seed), sys.maxsize)
        os._exit(0)
    return child


def _end(client: int) -> None:
    os.kill(client, signal.SIGKILL)
    os.waitpid(client, 0)


def _use(at: Path, chance: random.Random, times: int) -> None:
    """Changes at random places; what others have moved or removed is not there."""

    def place() -> Path:
        return at / f"tree/d{chance.randrange(20)}/f{chance.randrange(_FILES)}"

    calls: list[Callable[[], object]] = [
        lambda: place().open("a").close(),
        lambda: place().write_bytes(b"y" * 5000),
        lambda: place().read_bytes(),
        lambda: place().rename(place()),
        lambda: place().parent.rename(place().parent),
        lambda: place().unlink(),
        lambda: os.listdir(place().parent),
        lambda: place().chmod(0o600),
        lambda: place().parent.mkdir(),
        lambda: os.link(place(), place()),
    ]
    for _ in range(times):
        with suppress(OSError):
            chance.choice(calls)()


class _Watch:
    """Looks a new name up, again and again: nobody but the daemon can know that it is not there. Between that it waits
    for a moment, and how much longer it gets to wait is what the machine makes everybody wait."""

    def __init__(self, at: Path) -> None:
        self._at = at
        self._end = threading.Event()
        self._slowest = self._late = 0.0
        self._asked = 0.0  # when, while it has not answered
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        for number in count():
            begun = time.monotonic()
            if self._end.wait(_MOMENT_S):
                return
            self._asked = time.monotonic()
            self._late = max(self._late, self._asked - begun - _MOMENT_S)
            (self._at / f"watch{number}").exists()
            self._slowest = max(self._slowest, time.monotonic() - self._asked)

    def stop(self) -> tuple[float, float]:
        """The longest that it took to answer, and that the machine was late, in seconds."""
        self._end.set()
        self._thread.join(10)
        return max(self._slowest, time.monotonic() - self._asked if self._thread.is_alive() else 0.0), self._late


def _forget(at: Path) -> None:
    """Let the kernel forget what it knows of the union."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    os.listdir(at)


def _descriptors(mount: PyunionMount) -> int:
    """But for those of directories that it keeps for later."""
    return mount.descriptors() - int(_cache(mount)["directories"])


def _nodes(mount: PyunionMount) -> int:
    return int(_cache(mount)["nodes"])


def _cache(mount: PyunionMount) -> dict[str, int]:
    command = [sys.executable, "-m", "pyunion", "status", str(mount.point), "--json"]
    said: dict[str, dict[str, int]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return said["cache"]


def _threads(mount: PyunionMount) -> int:
    return len(os.listdir(f"/proc/{mount.pid}/task"))


def _resident_kib(mount: PyunionMount) -> int:
    lines = Path(f"/proc/{mount.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


# What may not grow. Asking for the status needs threads, so these come first.
MEASURES: dict[str, Callable[[PyunionMount], int]] = {
    "threads": _threads,
    "memory (KiB)": _resident_kib,
    "descriptors": _descriptors,
    "inode table": _nodes,
}
