"""`mount -t fuse.pyunion` and `mount -t pyunion`: options as mount(8) hands them on, and the end of a mount."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.harness.files import tree
from tests.harness.leaks import await_end
from tests.harness.mounts import REPOSITORY
from tests.mount8.machine import Machine


@pytest.mark.parametrize("fstype", ["fuse.pyunion", "pyunion"])
def test_it_returns_when_the_union_is_mounted(machine: Machine, fstype: str) -> None:
    machine.mount(fstype=fstype, source="some-name")
    assert machine.succeed("cat", machine.point / "hello") == "hello"
    shown = machine.succeed("findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", machine.point)
    assert shown.split() == ["some-name", "fuse.pyunion"]
    machine.succeed("touch", machine.point / "new")
    machine.succeed("umount", machine.point)
    assert tree(machine.home / "upper") == ["new"]


def test_without_a_helper_of_its_own_mount_finds_pyunion(machine: Machine) -> None:
    """mount.fuse(8) runs `pyunion SRC MNT -o OPTIONS,dev,suid` through a shell."""
    machine.succeed("rm", "/sbin/mount.fuse.pyunion")
    machine.mount(f"{machine.rw},nodev")
    assert {"rw", "nodev"} <= machine.flags()
    machine.succeed("umount", machine.point)


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", "a b", "ä\n"])
def test_any_path_in_the_options(machine: Machine, name: str) -> None:
    (machine.home / name).mkdir()
    (machine.home / name / "above").touch()
    escaped = re.sub(r"([\\:,])", r"\\\1", f"{machine.home}/{name}")
    machine.mount(f"lowerdir={escaped}:{machine.home}/lower,upperdir={machine.home}/upper,workdir={machine.home}/work")
    assert machine.succeed("ls", machine.point).split() == ["above", "hello"]
    machine.succeed("umount", machine.point)


def test_relative_paths_are_those_of_the_caller(machine: Machine) -> None:
    machine.succeed("mount", "-t", "pyunion", "none", "mnt", "-o", "lowerdir=lower,upperdir=upper,workdir=work")
    assert machine.succeed("cat", "mnt/hello") == "hello"
    machine.succeed("umount", "mnt")


def test_flags_are_the_kernels(machine: Machine) -> None:
    machine.mount(f"{machine.rw},nosuid,nodev,noexec,noatime")
    assert {"rw", "nosuid", "nodev", "noexec", "noatime"} <= machine.flags()
    machine.succeed("umount", machine.point)
    machine.mount(machine.rw)
    assert not {"nosuid", "nodev", "noexec", "noatime"} & machine.flags()
    machine.succeed("umount", machine.point)
    machine.mount(f"{machine.rw},ro")
    assert "Read-only file system" in machine.run("touch", machine.point / "new").stderr
    machine.succeed("umount", machine.point)


def test_what_fstab_lines_say_for_others_is_passed_over(machine: Machine) -> None:
    machine.mount(f"defaults,_netdev,nofail,noauto,x-systemd.automount,x-mine=1,comment=c,relatime,{machine.rw}")
    machine.succeed("umount", machine.point)


def test_a_failure_is_a_sentence_and_a_status(machine: Machine) -> None:
    done = machine.run("mount", "-t", "fuse.pyunion", "pyunion", machine.point, "-o", "lowerdir=/nope")
    assert done.returncode == ExitCode.BRANCH
    assert done.stderr == "pyunion: lower branch /nope does not exist; create it or correct the path\n"


def test_a_dry_run_checks_and_does_not_mount(machine: Machine) -> None:
    fake = ("mount", "-f", "-n", "-v", "-t", "fuse.pyunion", "pyunion", machine.point, "-o")
    machine.succeed(*fake, machine.rw)
    assert machine.run(*fake, "lowerdir=/nope").returncode == ExitCode.BRANCH


def test_a_sloppy_mount_passes_over_what_it_does_not_know(machine: Machine) -> None:
    command = ("mount", "-t", "fuse.pyunion", "pyunion", machine.point, "-o", f"{machine.rw},frob=1")
    assert machine.run(*command).returncode == ExitCode.USAGE
    done = machine.run(*command, "-s")
    assert (done.returncode, done.stderr) == (0, "pyunion: unknown option passed over: frob=1\n")
    machine.succeed("umount", machine.point)


def test_another_namespace_is_refused(machine: Machine) -> None:
    done = machine.run("mount", "-N", "/proc/self/ns/mnt", "-t", "pyunion", "none", machine.point, "-o", machine.rw)
    assert done.returncode == ExitCode.USAGE
    assert "-N is not supported" in done.stderr


def test_a_lazy_umount_ends_the_daemon_with_its_last_user(machine: Machine) -> None:
    machine.mount()
    (daemon,) = machine.daemons()
    with Path(f"/proc/{daemon}/root{machine.point}/hello").open() as file:
        machine.succeed("umount", "--lazy", machine.point)
        assert machine.unions() == []
        assert file.read() == "hello\n"
        assert Path(f"/proc/{daemon}").exists()
    assert await_end(daemon)


def test_a_mount_within_a_service_returns(machine: Machine) -> None:
    """The readiness that the service manager waits for is that of the service, and not of a mount of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(machine.home / "notify"))
        command = ("mount", "-t", "pyunion", "none", machine.point, "-o", machine.rw)
        machine.succeed(*command, NOTIFY_SOCKET=str(machine.home / "notify"))
        machine.succeed("umount", machine.point)
        with pytest.raises(BlockingIOError):
            manager.recv(4096, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("environment", [[], ["PATH=/nowhere"], ["PATH=/usr/bin:/bin", "PYTHONPATH=."]])
def test_the_program_needs_nothing_of_its_callers(machine: Machine, environment: list[str]) -> None:
    """No PATH, and least of all Python modules from the directory that it is started in."""
    for module in ("pyunion", "json", "trio"):
        (machine.home / f"{module}.py").write_text("raise SystemExit('not ours')\n")
    program = REPOSITORY / "scripts/pyunion"
    machine.succeed("/usr/bin/env", "-i", *environment, program, "-o", machine.rw, machine.point)
    machine.succeed("umount", machine.point)
