"""A machine with systemd: the Debian root of scripts/debian-root, booted in a container by systemd-nspawn.

Its /srv is a directory that is seen from here as well, and this checkout is there by its own path, installed by
scripts/install. Commands run inside by nsenter(1). Knows nothing of what a test wants of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.harness.mounts import PATIENCE, REPOSITORY

Entry = dict[str, Any]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NSPAWN = [
    *("systemd-nspawn", "--quiet", "--boot", "--console=pipe", "--private-network", "--notify-ready=yes"),
    *("--register=no", "--keep-unit"),  # there may be no systemd on this machine that knows of containers
    # As on a real machine: DeviceAllow= is enforced, and there are file handles.
    *("--capability=CAP_BPF", "--system-call-filter=bpf name_to_handle_at open_by_handle_at"),
    *("--bind=/dev/fuse", f"--bind-ro={REPOSITORY}"),
]
_ENTER = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root")
# systemd's catalogue (systemd/sd-messages.h): a unit was started
STARTED = "39f53479d3a045ac8e11786248231fbf"


class Machine:
    """`home` becomes its scratch directory, `debian` is its root directory and stays as it is."""

    def __init__(self, home: Path, debian: Path) -> None:
        self._home = home
        self.root, self.srv = home / "root", home / "srv"
        for name in ("root", "srv", "own", "work"):
            (home / name).mkdir()
        layers = f"lowerdir={debian},upperdir={home}/own,workdir={home}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "none", self.root], check=True)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.leader = 0  # the first process there, as this side numbers it
        # What is lost with the machine's memory is what a test of its end wants to see.
        (self.root / "var/log/journal").mkdir(exist_ok=True)
        self._install()

    def _install(self) -> None:
        python = subprocess.run(
            ["chroot", self.root, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        here = REPOSITORY / ".venv/lib" / f"python{python}"
        assert here.is_dir(), f"the .venv is not of Python {python}, which the Debian of scripts/debian-root has"
        environment = {**os.environ, "DESTDIR": str(self.root)}
        subprocess.run([REPOSITORY / "scripts/install"], env=environment, check=True)

    def boot(self, *options: str) -> None:
        """Returns when it has reached its default target."""
        path = self._home / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (self._home / "console").open("wb") as log:
            manager.bind(str(path))
            manager.settimeout(PATIENCE)
            self._nspawn = subprocess.Popen(
                [*_NSPAWN, f"--directory={self.root}", f"--bind={self.srv}:/srv", *options],
                env={**os.environ, "NOTIFY_SOCKET": str(path), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            while (said := manager.recv(4096).decode()) != "READY=1\n":
                for line in said.splitlines():
                    if line.startswith("X_NSPAWN_LEADER_PID="):
                        self.leader = int(line.partition("=")[2])
        path.unlink()

    def power_off(self) -> None:
        """In order, as an administrator does it."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff")
        assert self._nspawn.wait(PATIENCE) == 0, self.console()
        self._nspawn = None

    def close(self) -> None:
        if self._nspawn is not None:
            # The first process takes all others with it; systemd-nspawn, killed, would leave it behind.
            os.kill(self.leader or self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait(PATIENCE)
        subprocess.run(["umount", self.root], check=True)
        shutil.rmtree(self._home)

    def console(self) -> str:
        return (self._home / "console").read_text(errors="replace")

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter(), *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def succeed(self, *command: str | Path) -> str:
        """Returns what the command prints."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        return self.succeed("sh", "-e", "-c", f"cd /\n{script}")

    def _enter(self) -> tuple[str, ...]:
        inside = ("--", "env", "-i", f"PATH={_PATH}", "LC_ALL=C.UTF-8")
        return ("nsenter", f"--target={self.leader}", *_ENTER, *inside)

    # -- units ------------------------------------------------------------------------------------------------

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.succeed("systemctl", "show", "--value", "--property", name, unit)

    def main_pid(self, unit: str) -> int:
        """The process of a service, as this side numbers it."""
        inside = self.show(unit, "MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()
                if numbers[-1] == inside and len(numbers) == 3 and self._is_ours(int(numbers[1])):
                    return int(numbers[1])
        raise AssertionError(f"{unit} has no process")

    def _is_ours(self, pid: int) -> bool:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.leader}/ns/pid")

    def mounts(self, point: str) -> list[str]:
        """The types of what is mounted there, the topmost last; asks no file system anything."""
        lines = Path(f"/proc/{self.leader}/mountinfo").read_text().splitlines()
        return [line.partition(" - ")[2].split()[0] for line in lines if line.split()[4] == point]

    # -- the journal ------------------------------------------------------------------------------------------

    def journal(self, *matches: str) -> list[Entry]:
        """What was logged before now."""
        self.succeed("journalctl", "--sync")
        return _entries(self.succeed("journalctl", "--output=json", "--all", *matches))

    def journal_of_the_dead(self, cursor: str) -> list[Entry]:
        """What was logged from this entry to the end."""
        where = ("--directory=/var/log/journal", f"--after-cursor={cursor}")
        command = ["chroot", str(self.root), "journalctl", "--output=json", "--all", *where]
        return _entries(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    @contextlib.contextmanager
    def awaiting(self, wanted: Callable[[Entry], bool]) -> Iterator[None]:
        """At the end of the block wait for an entry that was not there when it began."""
        cursor = self.journal("--lines=1")[-1]["__CURSOR"]
        yield
        follow = ["journalctl", "--output=json", "--all", "--follow", "--no-tail", f"--after-cursor={cursor}"]
        # nsenter(1) has journalctl as its child, so that both have to be ended
        follower = subprocess.Popen([*self._enter(), *follow], stdout=subprocess.PIPE, start_new_session=True)
        try:
            _read_until(wanted, follower)
        finally:
            os.killpg(follower.pid, signal.SIGKILL)
            follower.communicate()

    def wait_started(self, unit: str) -> contextlib.AbstractContextManager[None]:
        return self.awaiting(lambda entry: entry.get("UNIT") == unit and entry.get("MESSAGE_ID") == STARTED)


def _entries(text: str) -> list[Entry]:
    return [json.loads(line) for line in text.splitlines()]


def _read_until(wanted: Callable[[Entry], bool], follower: subprocess.Popen[bytes]) -> None:
    assert follower.stdout is not None
    end, seen = time.monotonic() + PATIENCE, b""
    while select.select([follower.stdout], [], [], max(end - time.monotonic(), 0))[0]:
        chunk = os.read(follower.stdout.fileno(), 1 << 16)
        assert chunk, "journalctl has ended"
        seen += chunk
        *lines, seen = seen.split(b"\n")
        if any(wanted(json.loads(line)) for line in lines):
            return
    raise AssertionError("no such entry came into the journal")
