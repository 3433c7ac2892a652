"""`mount -o remount`: flags change, what the union is made of does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.mount8.machine import Machine


@pytest.fixture
def mounted(machine: Machine) -> Machine:
    machine.mount(f"{machine.rw},nodev,metacopy=on,uidmapping=0:0:7")
    return machine


def _refused(machine: Machine, options: str, *table: str) -> str:
    """The sentence of a remount that is refused and changes nothing."""
    before = machine.flags()
    done = machine.remount(options, *table)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert machine.flags() == before
    return done.stderr


def test_read_only_and_back(mounted: Machine) -> None:
    assert mounted.remount("ro").returncode == 0
    assert {"ro", "nodev"} <= mounted.flags()
    assert "Read-only file system" in mounted.run("touch", mounted.point / "new").stderr
    assert mounted.run("mount", "-f", "-o", "remount,rw", mounted.point).returncode == 0  # only as if
    assert "ro" in mounted.flags()
    assert mounted.remount("rw").returncode == 0
    mounted.succeed("touch", mounted.point / "new")
    assert os.listdir(mounted.home / "upper") == ["new"]
    mounted.succeed("umount", mounted.point)


def test_flags_come_and_go_one_by_one(mounted: Machine) -> None:
    assert mounted.remount("nosuid,noexec,noatime").returncode == 0
    assert {"rw", "nodev", "nosuid", "noexec", "noatime"} <= mounted.flags()
    assert mounted.remount("exec,dev,relatime").returncode == 0
    assert {"rw", "nosuid", "relatime"} <= mounted.flags()
    assert not {"nodev", "noexec", "noatime"} & mounted.flags()
    mounted.succeed("umount", mounted.point)


def test_by_a_line_of_fstab(mounted: Machine) -> None:
    """mount(8) then hands over the whole line, branches and all."""
    table = mounted.home / "fstab"
    table.write_text(f"pyunion {mounted.point} fuse.pyunion {mounted.rw},metacopy=on,uidmapping=0:0:7,nofail 0 0\n")
    assert mounted.remount("ro", "-T", str(table)).returncode == 0
    assert "ro" in mounted.flags()
    table.write_text(table.read_text().replace("/lower,", "/other,"))
    assert "cannot change lowerdir of" in _refused(mounted, "ro", "-T", str(table))
    mounted.succeed("umount", mounted.point)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("lowerdir=other", "lowerdir"),
        ("lowerdir=lower:other", "lowerdir"),
        ("upperdir=other", "upperdir"),
        ("workdir=other,metacopy=off", "metacopy, workdir"),
        ("volatile", "volatile"),
        ("redirect_dir=nofollow", "redirect_dir"),
        ("squash_to_uid=5", "uidmapping or gidmapping"),
    ],
)
def test_what_the_union_is_made_of_stays(mounted: Machine, option: str, named: str) -> None:
    said = f"pyunion: cannot change {named} of {mounted.point} while it is mounted; unmount it and mount it again\n"
    assert _refused(mounted, f"ro,{option}") == said
    mounted.succeed("umount", mounted.point)


def test_what_was_mounted_read_only_stays_so(machine: Machine) -> None:
    machine.mount(f"{machine.rw},ro")
    assert machine.remount("nosuid").returncode == 0
    assert {"ro", "nosuid"} <= machine.flags()
    assert "for writing, as it was mounted read-only" in _refused(machine, "rw")
    machine.succeed("umount", machine.point)


@pytest.mark.parametrize("deleted", [False, True], ids=["written", "deleted"])
def test_a_file_that_keeps_it_writable_is_named(mounted: Machine, deleted: bool) -> None:
    """One that is being written, or was deleted while it is read; who only reads is not in the way."""
    (daemon,) = mounted.daemons()
    at = Path(f"/proc/{daemon}/root{mounted.point}")
    (at / "new").write_text("new\n")
    name = f"{mounted.point}/new" + deleted * " (deleted)"
    with (at / "hello").open(), (at / "new").open("r" if deleted else "a"):
        if deleted:
            (at / "new").unlink()
        done = mounted.remount("ro")
        assert done.returncode == ExitCode.BUSY
        who = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()}, open file {name})"
        assert done.stderr == f"pyunion: cannot remount: {mounted.point} is busy: {who}\n"
    assert mounted.remount("ro").returncode == 0
    mounted.succeed("umount", mounted.point)


def test_there_must_be_a_union(machine: Machine) -> None:
    done = machine.run("/sbin/mount.pyunion", "pyunion", machine.point, "-o", "remount,ro")
    assert done.returncode == ExitCode.MOUNT
    assert done.stderr == f"pyunion: cannot remount {machine.point}: no union is mounted there; leave out remount\n"
