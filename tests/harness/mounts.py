"""Real mounts behind one interface: pyunion as a subprocess, and the kernel's overlayfs as the reference.

A mount waits for ready or death by events, unmounts strictly, and lets the daemon's exit code and log be part
of the verdict. Knows nothing of what is on the branches.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from tests.harness import warm
from tests.harness.ready import until
from tests.harness.warm import PATIENCE as PATIENCE
from tests.harness.warm import REPOSITORY as REPOSITORY

_TRIES, _RETRY_S = 20, 0.05
_COMPLAINT = re.compile(r"\b(ERROR|CRITICAL)\b|Traceback|Exception ignored|Warning:")


class MountRefused(Exception):
    """The mount did not come about; the message is what the program said."""


class Layers(NamedTuple):
    """What to mount: the lower branches topmost first, and the writable branch with its work directory."""

    lowers: Sequence[Path]
    upper: Path | None = None
    work: Path | None = None
    data: Sequence[Path] = ()  # data-only branches below them all


class Mounted(NamedTuple):
    """A line of mountinfo, as far as tests care."""

    point: bytes
    fstype: str
    source: bytes


def mounted() -> list[Mounted]:
    """All mounts of this mount namespace."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def parse_mountinfo(text: bytes) -> list[Mounted]:
    found = []
    for line in text.split(b"\n")[:-1]:  # names may have other ends of lines in them
        fields = line.split(b" ")
        after = fields.index(b"-")
        found.append(Mounted(_unescape(fields[4]), fields[after + 1].decode(), _unescape(fields[after + 2])))
    return found


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def unmount(point: Path) -> None:
    """Unmount strictly: who keeps it busy has made a mistake, and is named.

    Whoever goes through the machine's mounts (df, findmnt, a container tool) holds each for a moment, and cannot
    be waited for; so a mount that is busy without a user is tried again.
    """
    for tries_left in reversed(range(_TRIES)):
        done = subprocess.run(["umount", point], capture_output=True, text=True)
        if done.returncode == 0:
            break
        users = ", ".join(users_of(point))
        if users or not tries_left:
            raise AssertionError(f"{done.stderr.strip()}; in use by: {users or 'nobody'}")
        time.sleep(_RETRY_S)


class Mount(ABC):
    """A union at `point`. `live` holds all that are mounted now, for the watch over leaks."""

    kind: ClassVar[str]
    live: ClassVar[set[Mount]] = set()

    def __init__(self, point: Path) -> None:
        self.point = point

    @abstractmethod
    def _start(self, layers: Layers, options: Sequence[str]) -> None: ...

    @abstractmethod
    def _stopped(self) -> None:
        """Called when the mount is gone."""

    def start(self, layers: Layers, options: Sequence[str] = ()) -> None:
        self._start(layers, options)
        Mount.live.add(self)

    def stop(self) -> None:
        """Unmount strictly."""
        unmount(self.point)
        Mount.live.discard(self)
        self._stopped()

    def abandon(self) -> None:
        """Clear away what a failed test has left, so that it cannot harm the next; never part of a test."""
        Mount.live.discard(self)
        subprocess.run(["umount", "--lazy", self.point], capture_output=True)


class KernelMount(Mount):
    """The kernel's overlayfs, with the features that pyunion has as well."""

    kind = "kernel"

    def _start(self, layers: Layers, options: Sequence[str]) -> None:
        lowers = ":".join(_escape(lower) for lower in layers.lowers)
        said = [f"lowerdir={lowers}" + "".join(f"::{_escape(data)}" for data in layers.data)]
        if layers.upper is not None:
            said += [f"upperdir={_escape(layers.upper)}", f"workdir={_escape(layers.work)}"]
        said += ["redirect_dir=on", "xino=on", *options]
        command = ["mount", "-t", "overlay", "overlay", "-o", ",".join(said), str(self.point)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MountRefused(done.stderr.strip())

    def _stopped(self) -> None:
        pass


def _escape(path: Path | None) -> str:
    return re.sub(r"([\\:,])", r"\\\1", str(path))


class PyunionMount(Mount):
    """pyunion as its users run it under a service manager: in the foreground, with the readiness protocol."""

    kind = "pyunion"

    def __init__(self, point: Path) -> None:
        super().__init__(point)
        self.expect_complaints = False
        self.through: Sequence[str] = ()  # the words of a program that becomes the daemon
        self.package_at = REPOSITORY  # where `python -m pyunion` finds the package
        self.log_path = point.with_name(point.name + ".log")
        self._daemon: subprocess.Popen[bytes] | warm.Process | None = None

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def descriptors(self) -> int:
        """How many descriptors the daemon has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def await_open(self, *paths: Path) -> None:
        """Until it has descriptors of these files of branches, as it has a moment after they were opened."""
        for path in paths:
            until(partial(self._has_open, path), f"{path} is not opened", PATIENCE)

    def _has_open(self, path: Path) -> bool:
        """Whether it has a descriptor, other than O_PATH."""
        wanted = path.stat().st_ino
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                flags = dict(re.findall(r"(\w+):\s*(\S+)", (fd.parents[1] / "fdinfo" / fd.name).read_text()))["flags"]
                if fd.stat().st_ino == wanted and not int(flags, 8) & os.O_PATH:
                    return True
        return False

    def bytes_moved(self, action: Callable[[], object]) -> int:
        """How many bytes the daemon reads and writes for an action, requests and replies too (proc_pid_io(5))."""
        before = self._bytes_moved()
        action()
        return self._bytes_moved() - before

    def _bytes_moved(self) -> int:
        fields = dict(line.split(": ") for line in Path(f"/proc/{self.pid}/io").read_text().splitlines())
        return int(fields["rchar"]) + int(fields["wchar"])

    def _start(self, layers: Layers, options: Sequence[str]) -> None:
        notify_path = self.point.with_name(self.point.name + ".notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(os.fspath(notify_path))
            try:
                self._launch(self._words(layers, options), {**os.environ, "NOTIFY_SOCKET": str(notify_path)})
                self._wait_ready(notify)
            finally:
                notify_path.unlink()
        if os.fsencode(self.point) not in [mount.point for mount in mounted()]:
            raise AssertionError(f"READY=1 was sent, but nothing is mounted; log:\n{self.log()}")

    def _launch(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        with self.log_path.open("wb") as log:
            if not self.through and self.package_at == REPOSITORY:
                self._daemon = warm.Process(words, REPOSITORY, environment, log, log)
                return
            self._daemon = subprocess.Popen(
                [*self.through, sys.executable, "-m", "pyunion", *words],
                cwd=self.package_at,
                env={**environment, **warm.PYTHON_IS_TOLD},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _words(self, layers: Layers, options: Sequence[str]) -> list[str]:
        command = ["mount", "--foreground"]
        escaped = [re.sub(r"([\\:])", r"\\\1", str(lower)) for lower in (*layers.lowers, *layers.data)]
        last = len(layers.lowers) - 1
        for lower in escaped[:last]:
            command += ["--lower", lower]
        command += ["--lower", "::".join(escaped[last:])]
        if layers.upper is not None:
            command += ["--upper", str(layers.upper), "--work", str(layers.work)]
        if options:
            command += ["-o", ",".join(options)]
        return [*command, str(self.point)]

    def _wait_ready(self, notify: socket.socket) -> None:
        """Until READY=1 comes or the daemon dies, whichever is first."""
        with _pidfd(self.pid) as death:
            poll = select.poll()
            poll.register(notify, select.POLLIN)
            poll.register(death, select.POLLIN)
            while ready := [fd for fd, _ in poll.poll(PATIENCE * 1000)]:
                if notify.fileno() in ready:
                    if b"READY=1" in notify.recv(4096).split(b"\n"):
                        return
                elif self._reap() == 0 or _COMPLAINT.search(self.log()):
                    raise AssertionError(f"the daemon ended before it was ready; log:\n{self.log()}")
                else:
                    raise MountRefused(self.log().strip())
        self.abandon()
        raise AssertionError(f"neither ready nor dead after {PATIENCE} s; log:\n{self.log()}")

    def _reap(self) -> int:
        assert self._daemon is not None
        code = self._daemon.wait(PATIENCE)
        self._daemon = None
        return code

    def wait_end(self) -> int:
        """Wait for the daemon's own end and return its exit code."""
        try:
            code = self._reap()
        except subprocess.TimeoutExpired:
            # faulthandler writes every thread's stack into the log before the process dies
            os.kill(self.pid, signal.SIGABRT)
            self._reap()
            raise AssertionError(f"the daemon did not end within {PATIENCE} s; log:\n{self.log()}") from None
        Mount.live.discard(self)
        return code

    def kill(self) -> None:
        """SIGKILL: the crash that no handler sees."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _stopped(self) -> None:
        if self._daemon is None:
            return  # killed by the test
        code = self.wait_end()
        log = self.log()
        assert code == 0, f"the daemon ended with {code}; log:\n{log}"
        assert self.expect_complaints or not _COMPLAINT.search(log), f"the daemon complained:\n{log}"

    def abandon(self) -> None:
        super().abandon()
        if self._daemon is not None:
            self._daemon.kill()
            self._reap()


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def users_of(point: Path) -> list[str]:
    """The processes with a descriptor, directory, program or mapping below a mount point, and which."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [process / "cwd", process / "root", process / "exe", *process.glob("fd/*")]
            held = {target for link in links if (target := _target(link)).is_relative_to(point)}
            mapped = re.findall(r" (/.*)$", (process / "maps").read_text(), re.MULTILINE)
            held |= {Path(path) for path in mapped if Path(path).is_relative_to(point)}
            if held:
                name = (process / "comm").read_text().strip()
                found.append(f"{name} (pid {process.name}) by {', '.join(sorted(map(str, held)))}")
    return found


def _target(link: Path) -> Path:
    try:
        return link.readlink()
    except OSError:
        return Path()
