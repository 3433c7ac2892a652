"""`pyunion mount -o remount,...`: other flags for a mount that is there, as mount(8) asks for them.

Owns what can change: the flags that the kernel keeps, read-only first, and the level of the daemon's log; and by a
whole file, as a service has one, the lower branches. What else the daemon was built from cannot, and is compared with
what it publishes, as mount(8) hands the whole line of fstab to us again, and a service its whole file.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict
from typing import Any

from pyunion import board, mountinfo, users
from pyunion.commands.branch import PATIENCE_S
from pyunion.config import MountConfig, Options
from pyunion.control import client
from pyunion.errors import ExitCode, PyunionError
from pyunion.mountinfo import Mounted
from pyunion.union.ids import NOT_MAPPED, Owners

_BY_OPTION = {"lowers": "lowerdir", "data_only": "lowerdir", "upper": "upperdir", "work": "workdir"}
_BY_OPTION |= {"follow_redirects": "redirect_dir", "owners": "uidmapping or gidmapping"}
_CAN_CHANGE = ("read_only", "mount_flags", "log_level")
_OF_A_START = ("mountpoint", "foreground", "log_file", "notes")


def run(
    options: Options, mountpoint: bytes, *, whole: MountConfig | None, log_level: str | None, dry: bool
) -> int:
    """Give the mount the flags among the options and no others, as mount(2) does; refuse what contradicts the mount.

    `whole` is the configuration where a file says it all: then what it does not say contradicts the mount too, if the
    mount has it. Without it what is not said stays as it is.
    """
    mount = mountinfo.topmost_at(os.path.realpath(mountpoint))
    shown = os.fsdecode(mountpoint)
    if mount is None or mount.fstype != "fuse.pyunion":
        raise PyunionError(f"cannot remount {shown}: no union is mounted there; leave out remount", ExitCode.MOUNT)
    running = _published(users.daemon_of(mount))
    if running is None:
        raise PyunionError(f"cannot remount {shown}: its daemon does not answer for it; unmount it", ExitCode.MOUNT)
    wanted = _wanted(options) if whole is None else _all_of(whole)
    changed = {name for name, value in wanted.items() if value != running.get(name)}
    _refuse(changed if whole is None else changed - {"lowers"}, shown)
    read_only = options.switches.get("read_only", False) if whole is None else whole.read_only or whole.upper is None
    if not read_only and (running["read_only"] or running["upper"] is None):
        raise PyunionError(
            f"cannot remount {shown} for writing, as it was mounted read-only; unmount it and mount it again",
            ExitCode.USAGE,
        )
    if not dry:
        if changed:
            with client.Connection(mount, PATIENCE_S) as connection:
                connection.ask("branches", set=wanted["lowers"][: len(wanted["lowers"]) - wanted["data_only"]])
        _apply(mount, read_only, options)
        level = log_level if whole is None else whole.log_level
        if level is not None:
            with client.Connection(mount) as connection:
                connection.ask("log-level", level=level)
    return ExitCode.OK


def _published(daemon: int | None) -> dict[str, Any] | None:
    try:
        return None if daemon is None else board.read(daemon)
    except OSError:  # it has ended, or is another user's
        return None


def _refuse(changed: set[str], shown: str) -> None:
    """Whatever is said of the branches, and of the switches that the daemon was built with, has to be so already."""
    if changed:
        names = ", ".join(sorted({_BY_OPTION.get(name, name) for name in changed}))
        raise PyunionError(
            f"cannot change {names} of {shown} while it is mounted; unmount it and mount it again", ExitCode.USAGE
        )


def _wanted(options: Options) -> dict[str, Any]:
    """The fields of the configuration that the options speak of, in the form in which the daemon publishes them."""
    said: dict[str, Any] = {name: value for name, value in options.switches.items() if name != "read_only"}
    if options.lowers:
        said |= {"lowers": [os.path.realpath(path) for path in options.lowers], "data_only": options.data_only}
    for name, path in {"upper": options.upper, "work": options.work}.items():
        if path is not None:
            said[name] = os.path.realpath(path)
    owners = Owners(options.uids, options.gids)
    if owners != NOT_MAPPED:
        said["owners"] = owners
    return board.plain(said)


def _all_of(whole: MountConfig) -> dict[str, Any]:
    """The same of a whole configuration."""
    said = asdict(whole)
    for name in (*_CAN_CHANGE, *_OF_A_START):
        del said[name]
    said["lowers"] = [os.path.realpath(path) for path in whole.lowers]
    for name in ("upper", "work"):
        said[name] = said[name] and os.path.realpath(said[name])
    return board.plain(said)


def _apply(mount: Mounted, read_only: bool, options: Options) -> None:
    """By mount(8), which is told not to call us again."""
    flags = [flag for flag in options.flags.values() if flag]
    if "noatime" not in flags:
        flags.append("relatime")  # or else the kernel keeps what there was
    words = ["remount", "ro" if read_only else "rw", *flags]
    # With source and mount point mount(8) looks into no table, and so adds nothing of its own.
    command = [b"mount", b"-i", b"-o", ",".join(words).encode(), b"--", mount.source or b"none", mount.point]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise PyunionError("cannot remount: mount(8) is not in PATH", ExitCode.MOUNT) from None
    if done.returncode:
        said = os.fsdecode(done.stderr).strip().partition("\n")[0]
        if "busy" in said:
            raise PyunionError(f"cannot remount: {users.busy(mount, for_writing=True)}", ExitCode.BUSY)
        raise PyunionError(f"cannot remount: {said}", ExitCode.MOUNT)
