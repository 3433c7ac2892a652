"""Lines of fstab: `mount -a`, one at a time, and by users."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.program import copy_program
from tests.mount8.machine import Machine

_USER = 1  # "daemon": fusermount3 wants a user with a name
_OPEN_TO_ALL = """
mkdir dev && mount -t tmpfs -o dev,mode=755 none dev && mknod -m 666 dev/fuse c 10 229
mount --bind dev/fuse /dev/fuse
"""
_HELPER = """\
#!/bin/sh
PYTHONPATH={place} exec {program} mount --helper "$@"
"""


def _write(machine: Machine, options: str, fstype: str = "fuse.pyunion") -> Path:
    """A table with one line, and one that is not to be mounted by itself."""
    table = machine.home / "fstab"
    absent = f"absent {machine.home}/absent {fstype} noauto,lowerdir=/nope 0 0\n"
    table.write_text(f"# a comment\n{absent}layers {machine.point} {fstype} {options} 0 0\n")
    return table


@pytest.mark.parametrize("fstype", ["fuse.pyunion", "pyunion"])
def test_mount_all(machine: Machine, fstype: str) -> None:
    options = f"{machine.rw},noatime,nofail,_netdev,x-systemd.requires-mounts-for={machine.home},x-systemd.automount"
    table = _write(machine, options, fstype)
    machine.succeed("mount", "-T", table, "-a")
    assert machine.succeed("cat", machine.point / "hello") == "hello"
    assert "noatime" in machine.flags()
    assert len(machine.unions()) == 1
    machine.succeed("mount", "-T", table, "-a")  # finds it mounted
    assert len(machine.unions()) == 1
    machine.succeed("umount", machine.point)


def test_one_line_by_its_mount_point(machine: Machine) -> None:
    (machine.home / "with space").mkdir()
    (machine.home / "with space/above").touch()
    table = _write(machine, f"lowerdir={machine.home}/with\\040space:{machine.home}/lower,ro")
    machine.succeed("mount", "-T", table, machine.point)
    assert machine.succeed("ls", machine.point).split() == ["above", "hello"]
    machine.succeed("umount", machine.point)


def test_a_line_that_fails_is_named_and_the_others_are_mounted(machine: Machine) -> None:
    table = _write(machine, f"{machine.rw},nofail")
    table.write_text(table.read_text().replace("noauto,", ""))
    (machine.home / "absent").mkdir()
    done = machine.run("mount", "-T", table, "-a")
    assert done.returncode
    assert "pyunion: lower branch /nope does not exist" in done.stderr
    assert [mount.source for mount in machine.unions()] == [b"layers"]
    machine.succeed("umount", machine.point)


def test_a_user_mounts_and_unmounts_what_is_his(machine: Machine) -> None:
    helper = machine.home / "helper"
    helper.write_text(_HELPER.format(place=machine.home / "program", program=copy_program(machine.home / "program")))
    helper.chmod(0o755)
    machine.succeed("ln", "-sf", helper, "/sbin/mount.fuse.pyunion")
    machine.succeed("sh", "-ec", _OPEN_TO_ALL)
    for name in ("upper", "work", "mnt"):
        machine.succeed("chown", str(_USER), machine.home / name)
    machine.succeed("cp", _write(machine, f"{machine.rw},user,noauto"), "/etc/fstab")
    machine.succeed("mount", machine.point, user=_USER)
    assert {"nosuid", "nodev", "noexec", f"user_id={_USER}"} <= machine.flags()
    machine.succeed("sh", "-c", f"echo mine > {machine.point}/new", user=_USER)
    machine.succeed("umount", machine.point, user=_USER)
    assert (machine.home / "upper/new").read_text() == "mine\n"
    machine.succeed("umount", "/dev/fuse", machine.home / "dev")
