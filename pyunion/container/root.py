"""A directory becomes the root of this process, with /proc, /dev and /sys in it, and then a program takes its place.

Owns what is mounted there. All of it is mounted after the old root is gone, so that no symlink of an image leads to the
machine's directories. The caller has namespaces of its own (unshare(2)).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from errno import EACCES, ENOENT, ENOTDIR
from stat import S_IFCHR
from typing import NamedTuple

from pyunion.branch import syscalls
from pyunion.branch.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY
from pyunion.container.accounts import Account
from pyunion.errors import ExitCode, PyunionError

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Mount(NamedTuple):
    kind: bytes
    at: bytes
    flags: int
    options: bytes = b""


# mount(8) with these by hand shows what each means; sizes and modes are docker's.
_MOUNTS = (
    _Mount(b"proc", b"/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    _Mount(b"tmpfs", b"/dev", MS_NOSUID, b"mode=755,size=64m"),
    _Mount(b"devpts", b"/dev/pts", MS_NOSUID | MS_NOEXEC, b"newinstance,ptmxmode=0666,mode=0620,gid=5"),
    _Mount(b"tmpfs", b"/dev/shm", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"mode=1777,size=64m"),
    _Mount(b"sysfs", b"/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY),
)
_DEVICES = {b"null": (1, 3), b"zero": (1, 5), b"full": (1, 7), b"random": (1, 8), b"urandom": (1, 9), b"tty": (5, 0)}
_LINKS = {
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
    b"ptmx": b"pts/ptmx",
}


def enter(root: bytes) -> None:
    """Make a mount our root, and nothing else is there any more. Raises OSError."""
    syscalls.set_propagation(b"/", syscalls.MS_PRIVATE)
    os.chdir(root)
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir(b"/")
    os.umask(0)
    for mount in _MOUNTS:
        if not os.path.isdir(mount.at):
            os.mkdir(mount.at, 0o755)
        syscalls.mount(mount.kind, mount.at, mount.kind, mount.flags, mount.options)
        if mount.at == b"/dev":
            _fill_dev()
    os.umask(0o022)


def _fill_dev() -> None:
    for name, (major, minor) in _DEVICES.items():
        os.mknod(b"/dev/" + name, S_IFCHR | 0o666, os.makedev(major, minor))
    for name, target in _LINKS.items():
        os.symlink(target, b"/dev/" + name)


def text_of(path: str) -> str:
    """A file of the image; nothing where it has none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def become(account: Account) -> None:
    """Take on the ids of an account, for good. Raises OSError."""
    os.setgroups(account.groups)
    os.setgid(account.gid)
    os.setuid(account.uid)


def go_to(workdir: str) -> None:
    """Change to a directory, which is made if it is not there. Raises PyunionError."""
    try:
        os.makedirs(workdir, exist_ok=True)
        os.chdir(workdir)
    except OSError as error:
        raise PyunionError(f"the image's working directory {workdir} cannot be used: {error.strerror}") from None


def environment(image: Sequence[str], account: Account, hostname: str) -> dict[str, str]:
    """What a program gets: the image's, and what docker adds. Nothing is the caller's but the kind of its terminal."""
    found = {"PATH": _PATH, "HOSTNAME": hostname, "HOME": account.home}
    if os.isatty(0) and "TERM" in os.environ:
        found["TERM"] = os.environ["TERM"]
    return found | dict(text.split("=", 1) for text in image)


def forget_handlers() -> None:
    """Of signals: what Python has done to them for itself, and what the caller ignores. nohup(1) ignores SIGHUP, a
    script's `&` SIGINT and SIGQUIT, and a shell cannot trap what was ignored when it began."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)


def execute(command: list[str], variables: Mapping[str, str]) -> None:
    """A program takes our place, with no descriptor but 0 to 2.

    Raises PyunionError with the exit status that shells give.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2:
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone already
                os.close(fd)
    name = command[0]
    places = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in variables["PATH"].split(":")]
    worst = ENOENT
    for place in places:
        try:
            os.execve(place, command, variables)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                worst = error.errno or EACCES
    code = ExitCode.NOT_THERE if worst == ENOENT else ExitCode.CANNOT_RUN
    raise PyunionError(f"cannot run {name}: {os.strerror(worst)}", code)
