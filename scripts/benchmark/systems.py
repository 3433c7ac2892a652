"""What mounts a union, and what its daemon costs: CPU seconds and memory.

A system is a command line; nothing here depends on which it is. Its daemon is recognised by a variable of the
environment that it was started with, so that others of the same name on this machine do not count.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark.materials import Material, shell
from benchmark.workload import FUSE_OVERLAYFS, KERNEL, PYUNION, UNIONFS, Sizes

_MARK = "PYUNION_BENCHMARK"
_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE = 60  # seconds for what should come at once


class System(NamedTuple):
    """A mount command as a template; {lower} is the lower branches, joined by `separator`, topmost first. {options} is
    those that a workload wants, if any, each after a comma.

    The command returns when the mount answers. Lower branches are given relative to the directory it is started in,
    for mount(2) takes no more than a page.
    """

    name: str
    template: str
    separator: str = ":"

    @property
    def is_there(self) -> bool:
        return shutil.which(shlex.split(self.template)[0]) is not None

    def command(self, lowers: Sequence[str], upper: Path, work: Path, mnt: Path, options: str = "") -> list[str]:
        """With the program's whole path, for it may have been said relative to where we are."""
        program, *words = shlex.split(self.template)
        lower = self.separator.join(lowers)
        more = options and f",{options}"
        filled = [word.format(lower=lower, upper=upper, work=work, mnt=mnt, options=more) for word in words]
        return [os.path.abspath(shutil.which(program) or program), *filled]


_OPTIONS = "-o lowerdir={lower},upperdir={upper},workdir={work}{options} {mnt}"
PYUNION_MOUNT = f"pyunion mount {_OPTIONS}"
BUILT_IN = (
    System(KERNEL, f"mount -t overlay overlay {_OPTIONS}"),
    System(FUSE_OVERLAYFS, f"fuse-overlayfs {_OPTIONS}"),
    System(UNIONFS, "unionfs -o cow,allow_other,use_ino,suid,dev {upper}=RW:{lower}=RO {mnt}", separator="=RO:"),
    System(PYUNION, f"{shlex.quote(sys.executable)} -I -m {PYUNION_MOUNT}"),
)


def from_template(said: str) -> System:
    """NAME=COMMAND; raises ValueError with what is wrong."""
    name, found, template = said.partition("=")
    if not (found and template.strip() and re.fullmatch(r"[\w.-]+", name)):
        raise ValueError(f"{said!r} is not NAME=mount command")
    system = System(name, template)
    try:
        words = system.command(["{lower}"], Path("{upper}"), Path("{work}"), Path("{mnt}"))
    except (KeyError, IndexError, ValueError) as error:
        known = "{lower}, {upper}, {work}, {options} and {mnt}"
        raise ValueError(f"{template!r} knows {known} only: {error}") from None
    if not all(any(needed in word for word in words) for needed in ("{lower}", "{upper}", "{mnt}")):
        raise ValueError(f"{template!r} does not say where {{lower}}, {{upper}} and {{mnt}} go")
    return system


# --- daemons ------------------------------------------------------------------------------------------


class Daemon:
    """All processes with one value of the marking variable. None for a file system of the kernel's own."""

    def __init__(self, mark: str) -> None:
        wanted = f"{_MARK}={mark}".encode()
        self.pids = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (process / "environ").read_bytes().split(b"\0"):
                    self.pids.append(int(process.name))

    def __bool__(self) -> bool:
        return bool(self.pids)

    def cpu(self) -> float:
        """Seconds, of user and system."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    def memory(self, field: str) -> int:
        """KiB by the name in /proc/PID/status: VmRSS, or VmHWM, the most it ever was."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                found = re.search(rf"^{field}:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
        return total

    def settle(self) -> None:
        """Wait until it has nothing more to do: FORGET requests have no answer to wait for."""
        deadline = time.monotonic() + _PATIENCE
        before = -1.0
        while (now := self.cpu()) > before and time.monotonic() < deadline:
            before = now
            time.sleep(0.3)

    def await_end(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                try:
                    if not select.select([fd], [], [], _PATIENCE)[0]:
                        raise subprocess.TimeoutExpired(f"the end of daemon {pid} after umount", _PATIENCE)
                finally:
                    os.close(fd)


# --- mounts -------------------------------------------------------------------------------------------


class Place:
    """One mount with branches of its own but for the lower ones. As a context it takes all away, the mount too."""

    def __init__(
        self, system: System, material: Material, top: Path, tools: Path, sizes: Sizes, options: str = ""
    ) -> None:
        """`options` are for the mount, as the system has them."""
        self.system = system
        self._options = options
        self.material = material
        self.base = Path(tempfile.mkdtemp(prefix=f"{system.name}-", dir=top))
        self.upper, self.work, self.mnt = (self.base / name for name in ("upper", "work", "mnt"))
        self.daemon = Daemon("")
        self._foreground: subprocess.Popen[bytes] | None = None
        self.variables: dict[str, str | Path | int] = {
            **sizes.environment(),
            **material.numbers,
            "LOOPS": tools / "loops",
            "LOWER": material.lower,
            "UPPER": self.upper,
            "MATERIAL": material.directory,
        }

    def __enter__(self) -> Place:
        for path in (self.upper, self.work, self.mnt):
            path.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        if self.mnt.is_mount():
            self.unmount()
        shutil.rmtree(self.base)

    def mount(self, *, foreground: bool = False) -> None:
        """Return when the mount answers. Raises subprocess.CalledProcessError.

        The command has ended then, unless it stays in the foreground as the daemon.
        """
        command = self.system.command(self.material.lowers, self.upper, self.work, self.mnt, self._options)
        environment = {**os.environ, _MARK: self.base.name}
        with tempfile.TemporaryFile("w+") as said:  # not a pipe, which a daemon might keep
            process = subprocess.Popen(
                command,
                cwd=self.material.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
            if foreground:
                self._foreground = process
                while process.poll() is None and not self.mnt.is_mount():
                    time.sleep(0.01)
            else:
                process.wait()
            if process.returncode or not self.mnt.is_mount():
                said.seek(0)
                raise subprocess.CalledProcessError(process.returncode, command, None, said.read())

    def find_daemon(self) -> Daemon:
        self.daemon = Daemon(self.base.name)
        return self.daemon

    def unmount(self) -> None:
        """Wait for the daemon's end, too. A mount that stays busy is detached."""
        deadline = time.monotonic() + 5
        while subprocess.run(["umount", self.mnt], capture_output=True).returncode:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", self.mnt], check=True)
                break
            time.sleep(0.1)
        self.find_daemon().await_end()
        if self._foreground:
            self._foreground.wait()

    def run(self, script: str, *, outside: bool = False) -> None:
        """In the union's root; or beside it, for what is to be before the mount."""
        shell(script, self.base if outside else self.mnt, **self.variables)
