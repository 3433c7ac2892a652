"""`pyunion umount`: it waits for the daemon's end, names those who are in the way, and clears dead mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyunion.errors import ExitCode, printable
from tests.cli.command import pyunion
from tests.harness.mounts import PyunionMount
from tests.harness.mounts import mounted as all_mounts
from tests.harness.ready import until

_MAP = (
    "import mmap, os, sys\n"
    "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
    "held = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n"  # mmap has a descriptor of its own, closed below
    "os.closerange(3, 64)\n"
    "print('mapped', flush=True)\n"
    "sys.stdin.read()\n"
)


@contextlib.contextmanager
def _process(
    *command: str, cwd: Path | None = None, stdin: int = subprocess.PIPE, says_so: bool = False
) -> Iterator[int]:
    """A process that lives until the end of the block, and has said `mapped` if it is to."""
    process = subprocess.Popen(command, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE)
    try:
        if says_so or command[0] == sys.executable:
            assert process.stdout is not None
            assert process.stdout.readline() == b"mapped\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def _assert_busy(mount: PyunionMount, *, who: str) -> None:
    done = pyunion("umount", mount.point)
    assert done.returncode == ExitCode.BUSY
    assert done.stderr == f"pyunion: {mount.point} is busy: {who}; end these, or detach it with --lazy\n"


def test_it_waits_for_the_daemon(mounted: PyunionMount) -> None:
    (mounted.point / "new").write_text("new\n")
    done = pyunion("umount", mounted.point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Path(f"/proc/{mounted.pid}/stat").open() as stat:
        assert stat.read().rpartition(")")[2].split()[0] == "Z", "the daemon had not ended when umount returned"
    assert mounted.wait_end() == 0


def test_busy_by_a_directory(mounted: PyunionMount) -> None:
    with _process("cat", cwd=mounted.point) as pid:
        _assert_busy(mounted, who=f"cat (process {pid}, working directory {mounted.point})")
    mounted.stop()


def test_busy_by_a_root_directory(mounted: PyunionMount) -> None:
    code = "import os, sys; os.chroot(sys.argv[1]); print('mapped', flush=True); sys.stdin.read()"
    with _process(sys.executable, "-c", code, str(mounted.point), cwd=Path("/")) as pid:
        command = Path(f"/proc/{pid}/comm").read_text().strip()
        _assert_busy(mounted, who=f"{command} (process {pid}, root directory {mounted.point})")
    mounted.stop()


def test_busy_by_a_program(mounted: PyunionMount) -> None:
    program = mounted.point / "program"
    shutil.copy("/bin/cat", program)
    with _process(str(program)) as pid:
        until(lambda: os.readlink(f"/proc/{pid}/exe") == str(program), "it is not executed", 10)
        _assert_busy(mounted, who=f"program (process {pid}, program {program})")
    mounted.stop()


def test_who_is_at_that_path_elsewhere_is_not_in_the_way(mounted: PyunionMount) -> None:
    """In another mount namespace, where the union is not mounted."""
    script = 'umount "$1" && cd "$1" && echo mapped && exec cat'
    with contextlib.ExitStack() as stack:
        stack.enter_context(_process("unshare", "--mount", "sh", "-c", script, "-", str(mounted.point), says_so=True))
        pid = stack.enter_context(_process("cat", cwd=mounted.point))
        _assert_busy(mounted, who=f"cat (process {pid}, working directory {mounted.point})")
    mounted.stop()


def test_the_command_itself_is_not_in_the_way(mounted: PyunionMount) -> None:
    assert pyunion("umount", ".", cwd=mounted.point).returncode == 0
    assert mounted.wait_end() == 0


def test_the_daemon_names_them_as_well(mounted: PyunionMount) -> None:
    with _process("cat", cwd=mounted.point) as pid:
        os.kill(mounted.pid, signal.SIGTERM)
        until(lambda: "is busy" in mounted.log(), "it does not say that it is busy", 10)
    who = f"cat (process {pid}, working directory {mounted.point})"
    what = "open files: 0; unmounting when it is free; a second signal detaches it"
    assert f"{mounted.point} is busy: {who}; {what}\n" in mounted.log()
    assert mounted.wait_end() == 0


def test_busy_by_a_descriptor(mounted: PyunionMount) -> None:
    hello = mounted.point / "hello"
    with contextlib.ExitStack() as stack:
        with hello.open() as file:
            pid = stack.enter_context(_process("sleep", "1000", stdin=file.fileno()))
        _assert_busy(mounted, who=f"sleep (process {pid}, open file {hello})")
    mounted.stop()


@pytest.mark.parametrize("name", ["hello", "with spaces", "a\\b", "a\rb c\x85"])
def test_busy_by_a_mapping(mounted: PyunionMount, name: str) -> None:
    mapped = mounted.point / name
    if name != "hello":
        mapped.write_text("new\n")
    with _process(sys.executable, "-c", _MAP, str(mapped)) as pid:
        command = Path(f"/proc/{pid}/comm").read_text().strip()
        _assert_busy(mounted, who=f"{command} (process {pid}, mapped file {printable(str(mapped))})")
    mounted.stop()


def test_a_mount_on_top_keeps_it_busy(mounted: PyunionMount) -> None:
    (mounted.point / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted.point / "sub"], check=True)
    try:
        _assert_busy(mounted, who=f"the tmpfs mount on {mounted.point}/sub")
    finally:
        subprocess.run(["umount", mounted.point / "sub"], check=True)
    mounted.stop()


def test_lazy_leaves_the_users_be(mounted: PyunionMount) -> None:
    with (mounted.point / "hello").open() as file:
        assert pyunion("umount", "--lazy", mounted.point).returncode == 0
        assert os.fsencode(mounted.point) not in [mount.point for mount in all_mounts()]
        assert file.read() == "hello\n"
    assert mounted.wait_end() == 0


def test_a_dead_mount_is_cleared(mounted: PyunionMount) -> None:
    mounted.kill()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mounted.point)
    done = pyunion("umount", mounted.point)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(mounted.point) == []
    PyunionMount.live.discard(mounted)


def test_nothing_is_mounted_there(here: Path) -> None:
    done = pyunion("umount", "mnt", cwd=here)
    assert done.returncode == ExitCode.MOUNT
    assert done.stderr == "pyunion: nothing is mounted on mnt\n"


def test_mounts_of_others_are_left_alone() -> None:
    done = pyunion("umount", "/proc")
    assert done.returncode == ExitCode.MOUNT
    assert "not a union of ours but a mount of type proc" in done.stderr
