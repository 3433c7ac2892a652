"""`--config FILE`: a mount as a file says it, what the command line says instead, and what systemd is told of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import clean_environment, pyunion
from tests.harness.mounts import PATIENCE, PyunionMount, mounted


@pytest.fixture
def file(here: Path, _can_mount: None) -> Iterator[Path]:
    """A file for a mount on here/mnt; what a test leaves there is taken away."""
    (here / "lower/hello").write_text("hello\n")
    yield _write(here)
    for name in ("mnt", "other"):
        subprocess.run(["umount", "--lazy", here / name], capture_output=True)


def _write(here: Path, **keys: object) -> Path:
    said = {
        "lower": [f"{here}/lower"],
        "upper": f"{here}/upper",
        "work": f"{here}/work",
        "mountpoint": f"{here}/mnt",
    } | keys
    path = here / "mount.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items()))
    return path


def _succeed(*words: str | Path) -> None:
    done = pyunion(*words)
    assert (done.returncode, done.stderr) == (0, "")


def _points(here: Path) -> list[str]:
    return [os.fsdecode(mount.point) for mount in mounted() if mount.point.startswith(os.fsencode(here))]


def test_mount_and_umount(here: Path, file: Path) -> None:
    _succeed("mount", "--config", file)
    (here / "mnt/new").write_text("new\n")
    assert os.listdir(here / "upper") == ["new"]
    _succeed("umount", "--config", file)
    assert _points(here) == []


def test_the_command_line_comes_first(here: Path, file: Path) -> None:
    for name in ("other", "lower2", "upper2", "work2"):
        (here / name).mkdir()
    (here / "lower2/hello2").touch()
    _write(here, options=["fsname=file", "nodev", "noexec"])
    branches: list[str | Path] = ["--lower", here / "lower2", "--upper", here / "upper2", "--work", here / "work2"]
    _succeed("mount", *branches, "-o", "exec", "--config", file, "name", here / "other")
    (line,) = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {here}/other " in line]
    assert "nodev" in line
    assert "noexec" not in line
    assert " fuse.pyunion name " in line
    (here / "other/new").touch()
    assert sorted(os.listdir(here / "other")) == ["hello2", "new"]
    assert os.listdir(here / "upper2") == ["new"]
    _succeed("umount", here / "other")


def test_options_of_the_command_line_replace_branches_too(here: Path, file: Path) -> None:
    for name in ("lower2", "upper2", "work2"):
        (here / name).mkdir()
    _succeed("mount", "--config", file, "-o", f"lowerdir={here}/lower2,upperdir={here}/upper2,workdir={here}/work2")
    (here / "mnt/new").touch()
    assert os.listdir(here / "mnt") == os.listdir(here / "upper2") == ["new"]
    _succeed("umount", here / "mnt")


def test_a_wrong_file_is_refused(here: Path, file: Path) -> None:
    file.write_text("frob = 1\n")
    for words in (["mount"], ["mount", "-o", "remount,ro"]):
        done = pyunion(*words, "--config", file)
        assert done.returncode == ExitCode.CONFIG
        assert done.stderr.startswith(f"pyunion: {file}, line 1: the key 'frob' is not known; those that are: lower")


_WRONG_POINTS = {
    "lower = [": "line 1: this is no TOML: ",
    "mountpoint = 3": "line 1: mountpoint has to be a string",
    "mountpoint = 'mnt'": "line 1: mountpoint has to be an absolute path",
}


@pytest.mark.parametrize("text", _WRONG_POINTS)
def test_to_unmount_takes_the_mount_point_alone(here: Path, file: Path, text: str) -> None:
    """A daemon may crash while somebody is at work on its file; the dead mount is to go even so."""
    _succeed("mount", "--config", file)
    file.write_text(f"{text}\n")
    done = pyunion("umount", "--config", file)
    assert done.returncode == ExitCode.CONFIG
    assert done.stderr.startswith(f"pyunion: {file}, {_WRONG_POINTS[text]}")
    file.write_text(f"mountpoint = '{here}/mnt'\nlower = 3\nfrob = 1\noptions = ['nonsense']\n")
    _succeed("umount", "--config", file)
    assert _points(here) == []


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_somebody_has_to_name_a_mount_point(here: Path, file: Path, command: str) -> None:
    file.write_text(f'lower = ["{here}/lower"]\n')
    done = pyunion(command, "--config", file)
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("pyunion: no mount point is given; name ")


def test_umount_dead_takes_only_what_is_dead(here: Path, mounted: PyunionMount) -> None:
    _succeed("umount", "--dead", here / "mnt")
    assert (here / "mnt/hello").read_text() == "hello\n"
    mounted.kill()
    _succeed("umount", "--dead", here / "mnt")
    assert _points(here) == []
    _succeed("umount", "--dead", here / "mnt")


def test_a_dead_mount_is_cleared_first(here: Path, mounted: PyunionMount) -> None:
    mounted.kill()
    _succeed("mount", "--config", _write(here))
    assert (here / "mnt/hello").read_text() == "hello\n"
    assert _points(here) == [f"{here}/mnt"]
    _succeed("umount", here / "mnt")


def test_signs_of_life(here: Path, file: Path) -> None:
    """READY=1, WATCHDOG=1 again and again, STOPPING=1; and none for a watchdog that watches somebody else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(here / "notify"))
        for watched, pings in ((True, 3), (False, 0)):
            environment = {"NOTIFY_SOCKET": str(here / "notify"), "WATCHDOG_USEC": "100000"}
            if not watched:
                environment["WATCHDOG_PID"] = str(os.getpid())
            daemon = subprocess.Popen(
                [sys.executable, "-m", "pyunion", "mount", "--config", file], env=clean_environment() | environment
            )
            said: list[str] = []
            while "READY=1" not in said or said.count("WATCHDOG=1") < pings:
                said += manager.recv(4096).decode().split("\n")
            assert f"STATUS=mounted on {here}/mnt" in said
            daemon.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in said:
                said += manager.recv(4096).decode().split("\n")
            assert daemon.wait(PATIENCE) == 0
            assert ("WATCHDOG=1" in said) == watched
            manager.setblocking(False)
            _drain(manager)
            manager.settimeout(PATIENCE)


def _drain(manager: socket.socket) -> None:
    while True:
        try:
            manager.recv(4096)
        except BlockingIOError:
            return


def test_units_write_what_each_service_needs(here: Path, file: Path) -> None:
    _write(here, lower=['/srv/a b"c\\d%e', "/srv/line\nbreak"], mountpoint="/mnt/disk/union/")
    (here / "broken.toml").write_text("lower = [\n")
    done = pyunion("units", here / "out", "--configs", here)
    assert done.returncode == 0
    assert done.stderr.startswith(f"pyunion: {here}/broken.toml, line 1: this is no TOML: ")
    (drop_in,) = [path for path in (here / "out").rglob("*") if path.is_file()]
    assert drop_in.relative_to(here / "out") == Path("pyunion@mount.service.d/50-mounts.conf")
    assert drop_in.read_text().splitlines()[1:] == [
        "[Unit]",
        f"SourcePath={file}",
        f'RequiresMountsFor="/srv/a b\\"c\\\\d%%e" "{here}/upper" "{here}/work" "/mnt/disk"',
    ]


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        *(("127.0.0.1:1", "localhost"), ("[::1]:1", "localhost"), ("localhost:1", "localhost")),
        *(("[::]:1", "any"), ("host:1", "any")),
    ],
)
def test_units_let_a_service_with_metrics_have_a_network(here: Path, address: str, allowed: str) -> None:
    _write(here, metrics=address)
    assert pyunion("units", here / "out", "--configs", here).returncode == 0
    (drop_in,) = [path for path in (here / "out").rglob("*") if path.is_file()]
    assert drop_in.read_text().splitlines()[4:] == [
        *("[Service]", "RestrictAddressFamilies=AF_INET AF_INET6", f"IPAddressAllow={allowed}"),
    ]
