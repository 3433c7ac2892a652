"""`pyunion status`: what it says is what other tools say."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import pyunion as run_in_sandbox
from tests.harness.files import append, outcome, run, tree, write
from tests.harness.mounts import Layers, PyunionMount
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import Slow, connection_to, told


def _df(path: Path) -> dict[str, int]:
    numbers = run("df", "-B1", "--output=size,used,avail", path).splitlines()[1].split()
    return dict(zip(("size", "used", "free"), map(int, numbers), strict=True))


def test_branches_with_the_space_that_df_tells(tmpfs: Path, pyunion: Union) -> None:
    write(tmpfs / "branch/file", "x" * 100_000)
    pyunion.mount(lowers=[pyunion.low, tmpfs / "branch"])
    status = told("status", pyunion.at)
    branches = {branch["path"]: branch for branch in status["branches"]}
    assert list(branches) == [str(path) for path in (pyunion.top, pyunion.low, tmpfs / "branch")]
    assert [branch["role"] for branch in branches.values()] == ["upper", "lower", "lower"]
    assert {branch["state"] for branch in branches.values()} == {"ok"}
    on_tmpfs = branches[str(tmpfs / "branch")]
    assert {name: on_tmpfs[name] for name in ("size", "used", "free")} == _df(tmpfs)
    assert status["mountpoint"] == str(pyunion.at)
    assert status["pid"] == pyunion.daemon.pid
    pyunion.unmount()


def test_data_only_branches_are_told_as_such(pyunion: Union) -> None:
    pyunion.mount(lowers=[pyunion.low], data=[pyunion.low2])
    assert [branch["role"] for branch in told("status", pyunion.at)["branches"]] == ["upper", "lower", "data"]


def test_an_upper_that_became_read_only(tmpfs: Path, pyunion: Union) -> None:
    (tmpfs / "upper").mkdir()
    (tmpfs / "work").mkdir()
    pyunion.top, pyunion.work = tmpfs / "upper", tmpfs / "work"
    pyunion.mount()
    run("mount", "-o", "remount,ro", tmpfs)
    assert told("status", pyunion.at)["branches"][0]["state"] == "read-only"
    run("mount", "-o", "remount,rw", tmpfs)
    assert told("status", pyunion.at)["branches"][0]["state"] == "ok"
    pyunion.unmount()


def test_a_removed_branch(pyunion: Union) -> None:
    gone = pyunion.base / "gone"
    gone.mkdir()
    pyunion.watch_lowers = pyunion.compare_with_kernel = False
    pyunion.mount(lowers=[pyunion.low, gone])
    gone.rmdir()
    assert [branch["state"] for branch in told("status", pyunion.at)["branches"]] == ["ok", "ok", "removed"]


def test_open_files_and_descriptors(pyunion: Union) -> None:
    for number in range(7):
        write(pyunion.low / f"file{number}")
    pyunion.mount()
    assert told("status", pyunion.at)["open_files"] == 0
    with ExitStack() as stack:
        for number in range(7):
            stack.enter_context((pyunion.at / f"file{number}").open())
        with connection_to(pyunion) as connection:
            status = connection.ask("status")
            held = pyunion.daemon.descriptors()
    assert status["open_files"] == 7
    assert status["descriptors"] == held
    assert status["cache"]["nodes"] >= 8
    assert told("status", pyunion.at)["open_files"] == 0


def test_files_that_are_passed_through(pyunion: Union) -> None:
    write(pyunion.low / "file")
    pyunion.mount()
    with (pyunion.at / "file").open(), (pyunion.at / "new").open("w"), (pyunion.at / "new").open():
        status = told("status", pyunion.at)
        assert (status["open_files"], status["passthrough"]) == (3, {"granted": True, "files": 1})
        assert "3 files, 1 passed through" in run_pyunion("status", pyunion.at).stdout
    assert told("status", pyunion.at)["passthrough"] == {"granted": True, "files": 0}


def test_without_passthrough(pyunion: Union) -> None:
    pyunion.mount("passthrough=off")
    with (pyunion.at / "new").open("w"):
        assert told("status", pyunion.at)["passthrough"] == {"granted": False, "files": 0}
        assert "1 files; no passthrough" in run_pyunion("status", pyunion.at).stdout


def test_copies_are_counted_by_kind(pyunion: Union) -> None:
    for number in range(5):
        write(pyunion.low / f"d{number}/file", "x" * 1000)
    write(pyunion.low / "chmod", "x" * 500)
    (pyunion.low / "link").symlink_to("file")
    pyunion.mount("metacopy=on")
    for number in range(5):
        append(pyunion.at / f"d{number}/file", "y")
    (pyunion.at / "chmod").chmod(0o600)
    os.chown(pyunion.at / "link", 1, 1, follow_symlinks=False)
    copies = told("status", pyunion.at)["copy_ups"]
    in_upper = tree(pyunion.top)
    assert copies["done"] == {
        "file": len([path for path in in_upper if path.endswith("/file")]),
        "directory": len([path for path in in_upper if path.endswith("/")]),
        "metadata": 1,
        "other": 1,
    }
    assert copies["bytes"] == 5 * 1000
    append(pyunion.at / "chmod", "y")
    copies = told("status", pyunion.at)["copy_ups"]
    assert copies["done"]["data"] == 1
    assert copies["bytes"] == 5 * 1000 + 500


def test_a_long_copy_shows_how_far_it_is(slow: Slow, pyunion: Union) -> None:
    pyunion.watch_lowers = pyunion.compare_with_kernel = False
    pyunion.mount(lowers=[slow.at, pyunion.low])
    writer = threading.Thread(target=append, args=(pyunion.at / "big", "y"))
    writer.start()
    try:
        with connection_to(pyunion) as connection:
            running: list[dict[str, Any]] = []
            while not running or running[0]["bytes"] < slow.HALF:
                running = connection.ask("status")["copy_ups"]["running"]
        [copy] = told("status", pyunion.at)["copy_ups"]["running"]
        assert (copy["path"], copy["bytes"], copy["total"]) == ("/big", slow.HALF, 2 * slow.HALF)
        assert f"copying     /big: {slow.HALF >> 20} MiB of {slow.HALF >> 19} MiB" in run_pyunion("status").stdout
    finally:
        slow.proceed()
        writer.join()
    copies = told("status", pyunion.at)["copy_ups"]
    assert copies["running"] == []
    assert copies["bytes"] == 2 * slow.HALF
    pyunion.unmount()


def test_a_full_disk_is_counted(tmpfs: Path, pyunion: Union) -> None:
    (tmpfs / "upper").mkdir()
    (tmpfs / "work").mkdir()
    pyunion.top, pyunion.work = tmpfs / "upper", tmpfs / "work"
    write(pyunion.low / "big", "x" * (9 << 20))
    pyunion.mount()
    assert told("status", pyunion.at)["errors"] == {}
    assert outcome(append, pyunion.at / "big", "y") == "ENOSPC"
    assert outcome((pyunion.at / "nope").read_text) == "ENOENT"
    assert told("status", pyunion.at)["errors"] == {"ENOSPC": 1}
    pyunion.unmount()


def test_requests_are_counted_by_kind(pyunion: Union) -> None:
    pyunion.mount()
    before = told("status", pyunion.at)["requests"]
    for number in range(20):
        write(pyunion.at / f"file{number}", "x")
    (pyunion.at / "dir").mkdir()
    (pyunion.at / "file0").rename(pyunion.at / "file")
    with (pyunion.at / "file1").open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
    after = told("status", pyunion.at)["requests"]
    counted = {kind: count - before.get(kind, 0) for kind, count in after.items()}
    assert {kind: counted[kind] for kind in ("create", "mkdir", "rename", "fallocate")} == {
        "create": 20, "mkdir": 1, "rename": 1, "fallocate": 1,
    }  # fmt: skip


# -- which mounts -------------------------------------------------------------------------------------------------


def _mounts(base: Path) -> dict[int, str]:
    """Those below a directory: the daemon and the mount point, or what is said instead."""
    found = [status for status in told("status") if status["mountpoint"].startswith(str(base))]
    return {status.get("pid", 0): status.get("problem", status["mountpoint"]) for status in found}


def test_all_mounts_also_one_over_another(pyunion: Union) -> None:
    pyunion.mount()
    above = PyunionMount(pyunion.at)
    above.log_path = pyunion.base / "above.log"
    above.start(Layers([pyunion.low]))
    beside = PyunionMount(pyunion.base / "beside")
    beside.point.mkdir()
    beside.start(Layers([pyunion.low]))
    try:
        assert _mounts(pyunion.base) == {
            pyunion.daemon.pid: str(pyunion.at),
            above.pid: str(pyunion.at),
            beside.pid: str(beside.point),
        }
        assert told("status", pyunion.at)["pid"] == above.pid
    finally:
        above.stop()
        beside.stop()
    assert told("status", pyunion.at)["pid"] == pyunion.daemon.pid


def test_a_bind_mount_is_the_same_union(pyunion: Union) -> None:
    write(pyunion.low / "dir/file")
    pyunion.mount()
    other = pyunion.base / "other"
    other.mkdir()
    run("mount", "--bind", pyunion.at / "dir", other)
    try:
        assert told("status", other)["pid"] == pyunion.daemon.pid
        assert _mounts(pyunion.base) == {pyunion.daemon.pid: str(pyunion.at)}
    finally:
        run("umount", other)


def test_a_dead_mount_is_told_as_such(pyunion: Union) -> None:
    pyunion.compare_with_kernel = False
    pyunion.mount()
    pyunion.daemon.kill()
    sentence = f"the daemon of {pyunion.at} has ended; `pyunion umount {pyunion.at}` clears a dead mount"
    assert _mounts(pyunion.base) == {0: sentence}
    done = run_pyunion("status", pyunion.at)
    assert (done.returncode, done.stderr) == (ExitCode.MOUNT, f"pyunion: {sentence}\n")
    run("umount", pyunion.at)
    pyunion.forget()


def test_a_daemon_that_does_not_answer(pyunion: Union, monkeypatch: pytest.MonkeyPatch) -> None:
    pyunion.mount()
    monkeypatch.setattr("pyunion.control.client._PATIENCE_S", 0.2)
    os.kill(pyunion.daemon.pid, signal.SIGSTOP)
    try:
        with connection_to(pyunion) as connection, pytest.raises(Exception, match="has not answered for"):
            connection.ask("status")
    finally:
        os.kill(pyunion.daemon.pid, signal.SIGCONT)


def test_where_no_union_is(scratch: Path) -> None:
    done = run_pyunion("status", scratch)
    assert done.returncode == ExitCode.MOUNT
    assert done.stderr == f"pyunion: no union is mounted on {scratch}; `pyunion status` lists the mounted ones\n"


def test_the_table(pyunion: Union) -> None:
    pyunion.mount()
    done = run_pyunion("status", pyunion.at)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[:3] for row in rows] == [
        [str(pyunion.top), "upper", "ok"],
        *([str(lower), "lower", "ok"] for lower in (pyunion.low, pyunion.low2, pyunion.low3)),
    ]
    assert f"process {pyunion.daemon.pid}, version" in done.stdout
    assert "\x1b" not in done.stdout, "no colours where there is no terminal"


# -- how the daemon is found --------------------------------------------------------------------------------------


def test_from_another_network_namespace(pyunion: Union) -> None:
    pyunion.mount()
    done = run_in_sandbox("log-level", pyunion.at, before="exec unshare --net \"$@\"")
    assert (done.returncode, done.stdout) == (0, "info\n")


@pytest.mark.usefixtures("_can_mount")
def test_where_no_directory_can_be_written(scratch: Path) -> None:
    """Neither /run nor any other place where sockets go."""
    for name in ("lower", "mnt"):
        (scratch / name).mkdir()
    read_only = "for d in /run /dev/shm /tmp /var/tmp; do mount --bind $d $d; mount -o remount,bind,ro $d; done\n"
    mount = f"trap 'umount {scratch}/mnt' EXIT; \"$1\" -m pyunion mount --lower {scratch}/lower {scratch}/mnt\n"
    script = f"{read_only}{mount}grep -q @pyunion- /proc/net/unix; \"$@\"; exit"
    done = run_in_sandbox("log-level", scratch / "mnt", before=script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "info\n", "")


def test_nothing_is_left_where_the_socket_was_made(pyunion: Union) -> None:
    pyunion.mount()
    target = [os.readlink(link) for link in Path(f"/proc/{pyunion.daemon.pid}/fd").iterdir() if link.is_socket()]
    [made] = [Path(path.removesuffix(" (deleted)")) for path in target if path.endswith("/control (deleted)")]
    assert not made.parent.exists()


def test_it_goes_on_over_a_kill(pyunion: Union) -> None:
    """A daemon that was killed leaves nothing that keeps the next one from being asked."""
    pyunion.compare_with_kernel = False
    pyunion.mount()
    pyunion.daemon.kill()
    subprocess.run(["umount", pyunion.at], check=True)
    pyunion.forget()
    pyunion.mount()
    assert told("status", pyunion.at)["pid"] == pyunion.daemon.pid


def test_files_that_the_kernel_knows_twice_are_forgotten_twice(pyunion: Union) -> None:
    """With passthrough=all: who has a lower file open keeps it when it is written."""
    for number in range(20):
        write(pyunion.low / f"f{number}", "lower")
    pyunion.mount("passthrough=all")
    before = told("status", "--json", pyunion.at)
    held = [(pyunion.at / f"f{number}").open() for number in range(20)]
    for number in range(20):
        append(pyunion.at / f"f{number}", "+")
        assert (pyunion.at / f"f{number}").read_text() == "lower+"
    status = told("status", "--json", pyunion.at)
    assert status["cache"]["nodes"] == before["cache"]["nodes"] + 40
    assert status["passthrough"]["files"] == 20
    for file in held:
        assert file.read() == "lower"
        file.close()
    for number in range(0, 20, 2):
        (pyunion.at / f"f{number}").unlink()
    run("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches")
    status = told("status", "--json", pyunion.at)
    assert status["cache"]["nodes"] == before["cache"]["nodes"]
    assert status["passthrough"]["files"] == 0
