"""What the extension adds to pyfuse3, and that a mount without it does without, cleanly.

The calls are those of programs: O_TMPFILE with a later link, SEEK_HOLE, fallocate, copy_file_range, chattr.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from tests.harness.files import append, as_user, outcome, run, tree, write
from tests.harness.union import Union

_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def link_open_file(fd: int, path: Path) -> None:
    source = b"/proc/self/fd/%d" % fd
    if _libc.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(path), _AT_SYMLINK_FOLLOW) < 0:
        raise OSError(ctypes.get_errno(), "linkat")


def test_the_tests_run_with_the_extension(pyunion: Union) -> None:
    pyunion.mount()
    flags = "DONT_MASK, PARALLEL_DIROPS, CACHE_SYMLINKS, NO_OPENDIR_SUPPORT, HANDLE_KILLPRIV_V2, PASSTHROUGH"
    assert flags in pyunion.daemon.log()


def test_a_nameless_file_lives_until_it_is_closed_or_linked(union: Union) -> None:
    (union.low / "d").mkdir()
    union.mount()
    for named in (False, True):
        fd = os.open(union.at / "d", os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, b"nameless")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(union.at / "d") == []
        if named:
            link_open_file(fd, union.at / "d/name")
            assert os.fstat(fd).st_nlink == 1
            append(union.at / "d/name", "!")
            assert os.pread(fd, 99, 0) == b"nameless!"
        os.close(fd)
    union.remount()
    assert (union.at / "d/name").read_text() == "nameless!"
    assert (union.at / "d/name").stat().st_mode & 0o777 == 0o640


def test_a_nameless_file_belongs_to_its_maker(pyunion: Union) -> None:
    (pyunion.low / "d").mkdir()
    (pyunion.low / "d").chmod(0o777)
    pyunion.mount()
    script = "import os, sys; print(os.fstat(os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o666)).st_uid)"
    assert as_user("/usr/bin/python3", "-c", script, pyunion.at / "d", uid=1234).strip() == "1234"


def test_holes_are_found_in_files_of_both_kinds_of_branches(pyunion: Union) -> None:
    for path in (pyunion.low / "lower", pyunion.top / "upper"):
        path.touch()
        os.truncate(path, 1 << 20)
        append(path, "data")
    pyunion.mount()
    for name in ("lower", "upper"):
        fd = os.open(pyunion.at / name, os.O_RDONLY)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert outcome(os.lseek, fd, (1 << 20) + 4, os.SEEK_DATA) == "ENXIO"
        os.close(fd)


def test_data_that_only_the_kernels_cache_has_are_no_hole(pyunion: Union) -> None:
    pyunion.mount()
    writer = os.open(pyunion.at / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(writer, 1 << 20)
    os.pwrite(writer, b"data", 1 << 19)
    reader = os.open(pyunion.at / "f", os.O_RDONLY)
    assert os.lseek(reader, 0, os.SEEK_DATA) == 1 << 19
    os.pwrite(writer, b"more", 1 << 21)
    assert os.lseek(reader, 1 << 20, os.SEEK_DATA) == 1 << 21
    assert os.lseek(writer, 1 << 19, os.SEEK_HOLE) == (1 << 19) + 4096
    with mmap.mmap(writer, 0) as pages:
        pages[(1 << 18) : (1 << 18) + 6] = b"mapped"
        assert os.lseek(reader, 0, os.SEEK_DATA) == 1 << 18
    os.close(writer)
    assert os.lseek(reader, 0, os.SEEK_DATA) == 1 << 18
    os.close(reader)


def test_a_sparse_copy_of_a_file_that_is_being_written_has_all_of_it(union: Union) -> None:
    union.mount()
    with open(union.at / "f", "wb", buffering=0) as writer:
        for megabyte in range(4):
            writer.seek((megabyte + 1) << 20)
            writer.write(b"data")
        run("cp", "--sparse=auto", union.at / "f", union.at / "copy")
        assert (union.at / "copy").read_bytes() == (union.at / "f").read_bytes()


def test_space_is_allocated_and_holes_are_punched(union: Union) -> None:
    write(union.low / "f", "x" * 16384)
    union.mount()
    fd = os.open(union.at / "f", os.O_RDWR)
    fallocate(fd, 0, 0, 32768)
    assert os.fstat(fd).st_size == 32768
    fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 4096, 4096)
    assert os.pread(fd, 8192, 0) == b"x" * 4096 + bytes(4096)
    os.close(fd)
    assert (union.low / "f").read_text() == "x" * 16384


def test_copy_file_range_between_a_lower_file_and_a_new_one(union: Union) -> None:
    write(union.low / "f", "0123456789")
    union.mount()
    source = os.open(union.at / "f", os.O_RDONLY)
    target = os.open(union.at / "new", os.O_RDWR | os.O_CREAT)
    assert os.copy_file_range(source, target, 4, 3, 0) == 4
    assert os.pread(target, 99, 0) == b"3456"
    os.close(source)
    os.close(target)


def test_inode_flags_are_set_in_upper_only(pyunion: Union) -> None:
    write(pyunion.low / "f", "x")
    pyunion.mount()
    run("chattr", "+i", pyunion.at / "f")
    try:
        assert "i" in run("lsattr", pyunion.at / "f").split()[0]
        assert "i" not in run("lsattr", pyunion.low / "f").split()[0]
        assert outcome(append, pyunion.at / "f", "y") == "EPERM"
    finally:
        run("chattr", "-i", pyunion.at / "f")
    append(pyunion.at / "f", "y")


def test_an_append_only_file_takes_what_is_appended(union: Union) -> None:
    write(union.low / "log", "first\n")
    union.mount()
    run("chattr", "+a", union.at / "log")
    try:
        for number in range(3):
            append(union.at / "log", f"{number}\n")
        assert (union.at / "log").read_text() == "first\n0\n1\n2\n"
        assert outcome(os.open, union.at / "log", os.O_WRONLY) == "EPERM"
        assert outcome(os.unlink, union.at / "log") == "EPERM"
        run("touch", union.at / "log")
        assert outcome(os.utime, union.at / "log", (1, 1)) == "EPERM"
    finally:
        run("chattr", "-a", union.at / "log")
    append(union.at / "log", "last\n")
    union.remount()
    assert (union.at / "log").read_text() == "first\n0\n1\n2\nlast\n"


@pytest.mark.parametrize("flag", ["a", "i"])
def test_no_name_goes_from_a_directory_that_is_append_only_or_immutable(union: Union, flag: str) -> None:
    write(union.low / "d/full/f", "")
    write(union.low / "d/g", "")
    (union.low / "d/empty").mkdir()
    union.mount()
    write(union.at / "other", "")
    run("chattr", f"+{flag}", union.at / "d")
    try:
        for name in ("full", "empty"):
            assert outcome(os.rmdir, union.at / "d" / name) == "EPERM"
        assert outcome(os.unlink, union.at / "d/g") == "EPERM"
        assert outcome(os.rename, union.at / "other", union.at / "d/g") == "EPERM"
        assert outcome(os.rename, union.at / "d/g", union.at / "moved") == "EPERM"
        if flag == "a":
            run("touch", union.at / "d")
    finally:
        run("chattr", f"-{flag}", union.at / "d")
    assert outcome(os.rmdir, union.at / "d/full") == "ENOTEMPTY"
    os.rmdir(union.at / "d/empty")


def test_birth_times_are_the_branchs(pyunion: Union) -> None:
    write(pyunion.low / "f", "x")
    pyunion.mount()
    assert run("stat", "-c", "%W", pyunion.at / "f") == run("stat", "-c", "%W", pyunion.low / "f")


def test_setuid_goes_by_a_write_and_the_kernel_sees_it_go(pyunion: Union) -> None:
    write(pyunion.low / "f", "x", mode=0o6777)
    pyunion.mount()
    append(pyunion.at / "f", "by root")
    assert (pyunion.at / "f").stat().st_mode & 0o7777 == 0o6777
    as_user("sh", "-c", 'echo by a user >> "$0"', pyunion.at / "f")
    assert (pyunion.at / "f").stat().st_mode & 0o7777 == 0o777


def test_without_the_extension_the_mount_does_what_pyfuse3_can(bare: Union) -> None:
    write(bare.low / "f", "x", mode=0o6777)
    bare.mount()
    assert "nothing beyond what pyfuse3 asks for" in bare.daemon.log()
    as_user("sh", "-c", 'echo by a user >> "$0"', bare.at / "f")
    assert (bare.at / "f").stat().st_mode & 0o7777 == 0o777
    assert outcome(os.open, bare.at, os.O_TMPFILE | os.O_RDWR) in ("EOPNOTSUPP", "ENOTSUP", "EISDIR")
    fd = os.open(bare.at / "f", os.O_RDWR)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == os.fstat(fd).st_size
    assert outcome(fallocate, fd, 0, 0, 4096) in ("EOPNOTSUPP", "ENOTSUP")
    os.close(fd)
    run("cp", "--reflink=auto", bare.at / "f", bare.at / "copy")
    assert (bare.at / "copy").read_text() == (bare.at / "f").read_text()


def test_setuid_goes_by_an_allocation_too(union: Union) -> None:
    write(union.low / "f", "x" * 100, mode=0o6666)
    union.mount()
    as_user("fallocate", "-l", "8192", union.at / "f")
    assert (union.at / "f").stat().st_mode & 0o7777 == 0o666


def test_a_change_of_flags_is_seen_in_the_change_time_at_once(union: Union) -> None:
    union.mount()
    for path in (union.at / "f", union.at / "d"):
        path.mkdir() if path.name == "d" else write(path)
        for change in ("+d", "-d"):
            before = path.stat().st_ctime_ns
            run("chattr", change, path)
            assert path.stat().st_ctime_ns > before


def test_what_the_kernel_has_seen_is_not_asked_for_again(pyunion: Union) -> None:
    for number in range(100):
        write((pyunion.low, pyunion.low2, pyunion.top)[number % 3] / f"d{number % 7}/{number}")
        (pyunion.low / f"link{number}").symlink_to(f"d{number % 7}/{number}")
    pyunion.mount()

    def walk() -> list[str]:
        return [*tree(pyunion.at), *(os.readlink(path) for path in sorted(pyunion.at.glob("link*")))]

    seen = walk()
    walk()  # reading a directory has made its access time unknown, and stat asked for it
    assert pyunion.daemon.bytes_moved(walk) == 0
    assert walk() == seen


def test_an_idle_mount_does_nothing(pyunion: Union) -> None:
    """Not even look whether there is something to do: its daemon sleeps until somebody asks."""
    write(pyunion.low / "f")

    def switches() -> int:
        lines = Path(f"/proc/{pyunion.daemon.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    pyunion.mount()
    append(pyunion.at / "f", "a copy_up, so that all parts have run")
    time.sleep(0.5)  # the time in which nothing happens is what is tested
    before = switches()
    time.sleep(0.5)
    assert switches() == before
