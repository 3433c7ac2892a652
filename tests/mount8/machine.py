"""A machine to install pyunion on: this one, in a mount namespace of its own.

What is written to /etc and to the folders of programs is gone with the namespace. Knows pyunion as an administrator
does: by scripts/install, mount(8) and fstab.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.harness.mounts import PATIENCE, REPOSITORY, Mounted, parse_mountinfo

# Folders that take what is written on top of what they have; /sbin may be a link to one of them.
_OWN_FOLDERS = """
for folder in /etc /usr/local "$(readlink -f /sbin)"; do
    own=$1/own$(echo "$folder" | tr / -)
    mkdir -p "$own/upper" "$own/work"
    mount -t overlay -o "lowerdir=$folder,upperdir=$own/upper,workdir=$own/work" none "$folder"
done
echo ready
exec cat
"""
_SANDBOX = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", _OWN_FOLDERS, "sh"]


class Machine:
    """`home` is on it: a directory with lower, other, upper, work, mnt."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("lower", "other", "upper", "work", "mnt"):
            (home / name).mkdir()
        (home / "lower/hello").write_text("hello\n")
        self.point = home / "mnt"
        self.rw = f"lowerdir={home}/lower,upperdir={home}/upper,workdir={home}/work"
        self._holder = subprocess.Popen([*_SANDBOX, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.succeed(REPOSITORY / "scripts/install")

    def run(self, *command: str | Path, user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, in `home`."""
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"] if user else []
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "sh", "-c", 'cd "$0" && exec "$@"', self.home]
        kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        return subprocess.run(
            list(map(str, [*enter, *become, *command])),
            env=kept | {"LC_ALL": "C"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def succeed(self, *command: str | Path, user: int = 0, **environment: str) -> str:
        """Run a command that has nothing to complain of; returns what it prints."""
        done = self.run(*command, user=user, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def mount(self, options: str = "", fstype: str = "fuse.pyunion", source: str = "pyunion") -> None:
        self.succeed("mount", "-t", fstype, source, self.point, "-o", options or self.rw)

    def remount(self, options: str, *table: str) -> subprocess.CompletedProcess[str]:
        return self.run("mount", *table, "-o", f"remount,{options}", self.point)

    def flags(self) -> set[str]:
        """The flags of the mount, as findmnt shows them."""
        return set(self.succeed("findmnt", "--noheadings", "--output", "OPTIONS", self.point).split(","))

    def unions(self) -> list[Mounted]:
        """What is mounted below `home`, the folders of programs aside."""
        text = Path(f"/proc/{self._holder.pid}/mountinfo").read_bytes()
        return [mount for mount in parse_mountinfo(text) if mount.point.startswith(os.fsencode(self.home))]

    def daemons(self) -> list[int]:
        """The daemons of those mounts, by the namespace that they live in."""
        namespace = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        return [pid for pid in _processes() if pid != self._holder.pid and _namespace(pid) == namespace]

    def close(self) -> None:
        """Unmount what a failed test has left, and let go of the namespace."""
        for mount in reversed(self.unions()):
            self.run("umount", "--lazy", os.fsdecode(mount.point))
        self._holder.communicate()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""
