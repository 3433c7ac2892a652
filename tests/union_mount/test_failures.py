"""When something gives out: a full disk, a killed daemon, a branch that cannot store marks, limits of descriptors."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.files import append, outcome, run, touch_open, tree, write
from tests.harness.mounts import PATIENCE
from tests.harness.ready import until
from tests.harness.union import Union


@contextmanager
def upper_on(union: Union, kind: str, options: str = "defaults") -> Iterator[Path]:
    """Upper and work on a file system of their own, in memory, which outlives the union's mount."""
    home = union.top
    run("mount", "-t", kind, "-o", options, kind, home)
    try:
        union.top, union.work = home / "upper", home / "work"
        union.top.mkdir()
        union.work.mkdir()
        yield home
    finally:
        try:
            union.clean_up()
        finally:
            run("umount", home)


def test_a_full_disk_is_told_to_the_writer(union: Union) -> None:
    with upper_on(union, "tmpfs", "size=8m"):
        union.compare_with_kernel = False
        union.mount()
        fd = os.open(union.at / "f", os.O_CREAT | os.O_WRONLY)
        results = [outcome(os.write, fd, b"x" * (1 << 20)) for _ in range(12)]
        results += [outcome(os.fsync, fd), outcome(os.close, fd)]
        assert "ENOSPC" in results
        (union.at / "f").unlink()
        # The kernel tells the daemon of the end of a file when it comes to it.
        until(lambda: outcome(write, union.at / "g", "room again") == "OK", "there is no room again", PATIENCE)
        assert (union.at / "g").read_text() == "room again"


def test_a_copy_up_that_does_not_fit_leaves_the_lower_file_visible(union: Union) -> None:
    (union.low / "big").write_bytes(b"\xaa" * (12 << 20))
    with upper_on(union, "tmpfs", "size=8m"):
        union.mount()
        assert outcome(append, union.at / "big", "x") == "ENOSPC"
        assert outcome(os.chmod, union.at / "big", 0o600) == "ENOSPC"
        st = (union.at / "big").stat()
        assert (st.st_size, st.st_mode & 0o777) == (12 << 20, 0o644)
        assert tree(union.top) == []
        assert write(union.at / "small", "fits").read_text() == "fits"
        # and unmounting finds nothing left in the work directory


def test_data_that_do_not_fit_into_a_metadata_only_copy_take_no_room(pyunion: Union) -> None:
    (pyunion.low / "big").write_bytes(b"\xaa" * (12 << 20))
    with upper_on(pyunion, "tmpfs", "size=8m"):
        pyunion.mount("metacopy=on")
        big = pyunion.at / "big"
        os.utime(big, ns=(5, 7))
        assert tree(pyunion.top) == ["big"]
        before = os.statvfs(pyunion.top).f_bfree
        assert outcome(append, big, "x") == "ENOSPC"
        assert outcome(os.truncate, big, 10 << 20) == "ENOSPC"
        assert os.statvfs(pyunion.top).f_bfree == before
        assert big.stat().st_mtime_ns == 7
        assert big.read_bytes() == b"\xaa" * (12 << 20)
        os.truncate(big, 1 << 20)
        assert big.read_bytes() == b"\xaa" * (1 << 20)


def test_a_copy_up_that_cannot_get_its_name_leaves_all_as_it_was(union: Union) -> None:
    """An immutable directory in upper takes no names: neither a copy nor a link of one."""
    for name in ("d/one", "d/f"):
        write(union.low / name, "text")
    os.link(union.low / "d/one", union.low / "d/two")
    (union.top / "d").mkdir()
    union.compare_with_kernel = False  # which without the index does not know that two names are one file
    union.mount("index=on")
    run("chattr", "+i", union.top / "d")
    try:
        for name in ("d/one", "d/two", "d/f"):
            assert outcome(append, union.at / name, "x") == "EPERM"
            assert outcome(os.chmod, union.at / name, 0o600) == "EPERM"
        assert (tree(union.top), tree(union.work / "work")) == (["d/"], [])
    finally:
        run("chattr", "-i", union.top / "d")
    for name in ("d/one", "d/f"):
        append(union.at / name, "x")
    assert [(union.at / name).read_text() for name in ("d/one", "d/two", "d/f")] == ["textx"] * 3
    assert (union.at / "d/one").stat().st_nlink == 2


def test_statfs_is_that_of_upper(union: Union) -> None:
    with upper_on(union, "tmpfs", "size=64m") as upper:
        union.mount()
        of_union, of_upper = os.statvfs(union.at), os.statvfs(upper)
        assert of_union.f_blocks * of_union.f_frsize == of_upper.f_blocks * of_upper.f_frsize
        assert of_union.f_bavail * of_union.f_frsize == of_upper.f_bavail * of_upper.f_frsize
        assert of_union.f_files == of_upper.f_files
        assert of_union.f_namemax == 255


def test_an_upper_without_xattrs_refuses_only_what_needs_them(pyunion: Union) -> None:
    union = pyunion
    write(union.low / "f", "x")
    write(union.low / "d/y")
    with upper_on(union, "ramfs"):
        union.compare_with_kernel = False
        union.mount()
        append(union.at / "f", "y")
        assert (union.at / "f").read_text() == "xy"
        (union.at / "f").unlink()
        assert outcome(os.rename, union.at / "d", union.at / "e") == "EXDEV"  # there is no place for a redirect
        assert (union.at / "d/y").exists()
        run("rm", "-r", union.at / "d")
        if outcome(os.mkdir, union.at / "d") == "OK":
            assert os.listdir(union.at / "d") == []
        assert "f" not in tree(union.at)


def test_a_killed_daemon_leaves_errors_not_an_empty_directory(pyunion: Union) -> None:
    union = pyunion
    write(union.low / "f", "x")
    union.mount()
    write(union.at / "g", "y")
    run("sync", "-f", union.at / "g")
    union.daemon.kill()
    assert outcome(os.listdir, union.at) == "ENOTCONN"
    assert outcome(touch_open, union.at / "f", os.O_RDONLY) == "ENOTCONN"
    run("umount", union.at)
    union.forget()
    union.mount()
    assert tree(union.at) == ["f", "g"]
    assert (union.at / "g").read_text() == "y"


def test_a_daemon_killed_in_copy_up_leaves_no_part_of_a_file(pyunion: Union) -> None:
    union = pyunion
    size = 256 << 20
    with (union.low / "big").open("wb") as file:
        file.write(b"\xaa" * size)
    union.watch_lowers = False
    union.mount()
    writer = subprocess.Popen(["sh", "-c", 'printf X >> "$0"', union.at / "big"], stderr=subprocess.DEVNULL)
    while writer.poll() is None and not any(path.is_file() for path in union.work.rglob("*")):
        pass  # until the copy has begun
    union.daemon.kill()
    writer.wait()
    run("umount", union.at)
    union.forget()
    union.mount()  # a work directory that was left in disorder is no obstacle
    assert (union.at / "big").stat().st_size in (size, size + 1)
    with (union.at / "big").open("rb") as file:
        assert os.pread(file.fileno(), 1, size - 1) == b"\xaa"
    union.unmount()  # finds the work directory clean


def test_nothing_leaks_descriptors(pyunion: Union) -> None:
    union = pyunion
    write(union.low / "d/a")
    write(union.low / "full/x")
    union.mount()
    at = union.at

    def everything() -> None:
        (at / "t").mkdir()
        (at / "t").rmdir()
        write(at / "f", "x").unlink()
        outcome(os.rename, at / "d", at / "full")
        outcome(os.symlink, "x", at / "d/a")
        outcome(os.link, at / "none", at / "z")
        outcome(touch_open, at / "d", os.O_RDWR)
        os.listdir(at / "d")

    everything()
    before = union.daemon.descriptors()
    for _ in range(300):
        everything()
    assert union.daemon.descriptors() <= before + 5


def test_many_open_files_with_a_low_soft_limit(pyunion: Union) -> None:
    """The daemon stands for all its users, so it raises its own limit as far as it may."""
    union = pyunion
    for number in range(3000):
        write(union.low / f"d/{number}", str(number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        union.mount()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    opened = []
    try:
        for number in range(3000):
            opened.append(os.open(union.at / f"d/{number}", os.O_RDONLY))
        assert os.pread(opened[-1], 10, 0) == b"2999"
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_signals_that_end_the_daemon_leave_everything_on_disk(pyunion: Union) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        pyunion.mount()
        (pyunion.at / f"f{number}").write_bytes(b"data" * 1000)
        os.kill(pyunion.daemon.pid, number)
        assert pyunion.daemon.wait_end() == (-number if number == signal.SIGINT else 0)
        assert os.listdir(pyunion.at) == []  # unmounted
        pyunion.forget()
        assert (pyunion.top / f"f{number}").read_bytes() == b"data" * 1000


def test_a_second_signal_ends_a_mount_of_which_another_namespace_has_a_copy(pyunion: Union) -> None:
    write(pyunion.low / "f", "text")
    pyunion.mount()
    script = 'echo there; read _; cat "$0/f"; echo more; read _; ! cat "$0/f" 2>/dev/null && echo dead; read _'
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, pyunion.at],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "there\n"
        pyunion.daemon.expect_complaints = True
        os.kill(pyunion.daemon.pid, signal.SIGTERM)
        while os.path.ismount(pyunion.at):
            os.sched_yield()
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "textmore\n"
        os.kill(pyunion.daemon.pid, signal.SIGTERM)
        assert pyunion.daemon.wait_end() == 0
        pyunion.forget()
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "dead\n"
        print(file=holder.stdin, flush=True)


def test_the_daemon_survives_what_is_not_meant_to_end_it(pyunion: Union) -> None:
    pyunion.mount()
    os.kill(pyunion.daemon.pid, signal.SIGPIPE)
    assert write(pyunion.at / "f", "alive").read_text() == "alive"


def test_an_interrupted_caller_does_not_harm_the_others(pyunion: Union) -> None:
    (pyunion.low / "big").write_bytes(b"\xaa" * (64 << 20))
    pyunion.mount()
    for _ in range(20):
        reader = subprocess.Popen(["cat", pyunion.at / "big"], stdout=subprocess.DEVNULL)
        writer = subprocess.Popen(["dd", "if=/dev/zero", f"of={pyunion.at}/f", "bs=1M", "count=64", "status=none"])
        os.kill(reader.pid, signal.SIGKILL)
        os.kill(writer.pid, signal.SIGKILL)
        reader.wait()
        writer.wait()
        assert outcome(os.stat, pyunion.at / "big") == "OK"
