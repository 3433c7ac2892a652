"""copy_up: before the first change a lower object arrives in upper, whole, at once, and as it was."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.files import append, outcome, run, touch_open, tree, write
from tests.harness.union import Union

PAST = 1_000_000_000
NANOSECONDS = PAST * 10**9 + 123_456_789


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, ns=(NANOSECONDS, NANOSECONDS), follow_symlinks=False)


def _open_for_writing(path: Path) -> None:
    touch_open(path, os.O_WRONLY)


CHANGES: dict[str, Callable[[Path], object]] = {
    "open for writing": _open_for_writing,
    "append": lambda path: append(path, "x"),
    "truncate": lambda path: os.truncate(path, 1),
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 5, 6),
    "utime": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.old"),
    "link": lambda path: os.link(path, path.with_name("link")),
    "rename": lambda path: path.rename(path.with_name("renamed")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_lands_in_upper_with_the_rest_kept(union: Union, change: str) -> None:
    lower = write(union.low2 / "a/b/f", "content", mode=0o640)
    os.chown(lower, 7, 8)
    os.setxattr(lower, "user.old", b"value")
    os.setxattr(lower, "trusted.other", b"value")
    age(lower)
    union.mount()
    CHANGES[change](union.at / "a/b/f")
    name = "renamed" if change == "rename" else "f"
    st = (union.top / "a/b" / name).stat()
    assert st.st_mode & 0o7777 == (0o600 if change == "chmod" else 0o640)
    assert (st.st_uid, st.st_gid) == ((5, 6) if change == "chown" else (7, 8))
    assert os.getxattr(union.at / "a/b" / name, "trusted.other") == b"value"
    if change not in ("append", "truncate", "utime"):
        assert st.st_mtime_ns == NANOSECONDS
        assert (union.at / "a/b" / name).read_text() == "content"


def test_reading_never_copies_up(union: Union) -> None:
    write(union.low / "d/f", "text")
    (union.low / "s").symlink_to("d/f")
    union.mount()
    assert (union.at / "s").read_text() == "text"
    assert tree(union.at) == ["d/", "d/f", "s"]
    run("getfattr", "-d", "-m", "-", union.at / "d/f")
    fd = os.open(union.at / "d/f", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    union.unmount()
    assert tree(union.top) == []


def test_reading_leaves_the_lower_access_time_alone(union: Union) -> None:
    write(union.low / "f", "text")
    age(union.low / "f")
    union.watch_lowers = False  # looking at the branch itself does move it
    union.mount()
    assert (union.at / "f").read_text() == "text"
    union.unmount()
    assert (union.low / "f").stat().st_atime_ns == NANOSECONDS


@pytest.mark.parametrize("ns", [-1, -(10**18) - 5, -(2**31) * 10**9])
def test_times_before_1970(union: Union, ns: int) -> None:
    write(union.low / "lower")
    os.utime(union.low / "lower", ns=(ns, ns))
    union.mount()
    write(union.at / "new")
    (union.at / "d").mkdir()
    for name in ("new", "d"):
        os.utime(union.at / name, ns=(ns, ns))
    for _ in range(2):
        for name in ("lower", "new", "d"):
            assert (union.at / name).stat().st_mtime_ns == ns, name
        (union.at / "lower").chmod(0o600)
        union.remount()


def test_looking_around_leaves_no_access_times_either(pyunion: Union) -> None:
    """Listings, symlinks, mappings and copy_up itself."""
    union = pyunion
    write(union.low / "d/f", "text")
    (union.low / "d/s").symlink_to("f")
    paths = [union.low / path for path in ("d/f", "d/s", "d")]
    union.watch_lowers = union.compare_with_kernel = False
    age(*paths)
    union.mount()
    assert sorted(path.name for path in (union.at / "d").iterdir()) == ["f", "s"]
    assert (union.at / "d/s").readlink() == Path("f")
    with (union.at / "d/f").open("rb") as file, mmap.mmap(file.fileno(), 4, prot=mmap.PROT_READ) as mapping:
        assert mapping[:] == b"text"
    append(union.at / "d/f", "+")
    union.unmount()
    assert [path.lstat().st_atime_ns for path in paths] == [NANOSECONDS] * 3


def test_missing_parents_arrive_with_owner_mode_times_and_xattrs(union: Union) -> None:
    write(union.low / "a/b/c/f", "x")
    for path, uid, mode in (("a", 11, 0o1777), ("a/b", 13, 0o700), ("a/b/c", 15, 0o2711)):
        os.chown(union.low / path, uid, uid + 1)
        (union.low / path).chmod(mode)
        os.setxattr(union.low / path, "user.of", path.encode())
    age(*(union.low / path for path in ("a/b/c", "a/b", "a")))
    union.mount()
    append(union.at / "a/b/c/f", "y")
    for path, uid, mode in (("a", 11, 0o1777), ("a/b", 13, 0o700), ("a/b/c", 15, 0o2711)):
        for st in ((union.at / path).stat(), (union.top / path).stat()):
            assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (uid, uid + 1, mode)
            assert st.st_mtime_ns == NANOSECONDS
        assert os.getxattr(union.at / path, "user.of") == path.encode()


def test_changing_a_child_does_not_touch_its_directory(union: Union) -> None:
    write(union.low / "d/e/f")
    age(union.low / "d/e/f", union.low / "d/e", union.low / "d")
    union.mount()
    run("chown", "-R", "1:1", union.at / "d")
    assert (union.at / "d").stat().st_mtime_ns == NANOSECONDS
    assert (union.at / "d/e").stat().st_mtime_ns == NANOSECONDS


def test_truncation_at_open_keeps_all_but_the_data(union: Union) -> None:
    lower = write(union.low / "f", "x" * 100_000, mode=0o640)
    os.chown(lower, 9, 9)
    os.setxattr(lower, "user.a", b"b")
    union.mount()
    touch_open(union.at / "f", os.O_WRONLY | os.O_TRUNC)
    st = (union.at / "f").stat()
    assert (st.st_size, st.st_uid, st.st_mode & 0o7777) == (0, 9, 0o640)
    assert os.getxattr(union.at / "f", "user.a") == b"b"


def test_a_sparse_file_stays_sparse_and_exact(union: Union) -> None:
    size = 5 << 30
    with (union.low / "big").open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"MID", 2 << 30)
        os.pwrite(file.fileno(), b"END", size - 3)
    union.watch_lowers = union.compare_with_kernel = False  # 5 GiB is too much to hash
    union.mount()
    with (union.at / "big").open("r+b") as file:
        file.write(b"X")
    with (union.at / "big").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        assert os.pread(file.fileno(), 2, 0) == b"X\0"
        assert os.pread(file.fileno(), 5, (2 << 30) - 1) == b"\0MID\0"
        assert os.pread(file.fileno(), 9, size - 4) == b"\0END"
    assert (union.top / "big").stat().st_blocks * 512 < 16 << 20


def test_no_observer_sees_a_part_of_a_file(union: Union) -> None:
    size = 64 << 20
    (union.low / "big").write_bytes(b"\xaa" * size)
    union.mount()
    seen: set[tuple[int, bytes]] = set()
    done = threading.Event()

    def observe() -> None:
        while not done.is_set():
            fd = os.open(union.at / "big", os.O_RDONLY)
            seen.add((os.fstat(fd).st_size, os.pread(fd, 1, size - 1)))
            os.close(fd)

    observer = threading.Thread(target=observe)
    observer.start()
    # A process of its own: this one's interpreter lock would keep the observer from looking.
    subprocess.run(["sh", "-c", 'printf X >> "$0"', union.at / "big"], check=True)
    done.set()
    observer.join()
    assert seen <= {(size, b"\xaa"), (size + 1, b"\xaa")}
    assert (union.at / "big").stat().st_size == size + 1


def test_many_processes_change_one_lower_file_at_once(union: Union) -> None:
    (union.low / "f").write_bytes(b"0" * (8 << 20))
    union.mount()
    script = 'for i in 1 2 3 4 5; do printf "%s" x >> "$0"; done'
    writers = [subprocess.Popen(["sh", "-c", script, union.at / "f"]) for _ in range(8)]
    assert [writer.wait(60) for writer in writers] == [0] * 8
    content = (union.at / "f").read_bytes()
    assert content == b"0" * (8 << 20) + b"x" * 40


def test_symlinks_copy_up_as_themselves(union: Union) -> None:
    write(union.low / "target", "T")
    for name, text in (("link", "target"), ("dangling", "nowhere")):
        (union.low / name).symlink_to(text)
    age(union.low / "target")
    union.mount()
    for name in ("link", "dangling"):
        run("chown", "-h", "3:4", union.at / name)
        run("touch", "-h", "-d", "2020-01-02", union.at / name)
        os.setxattr(union.at / name, "trusted.k", b"v", follow_symlinks=False)
        st = (union.at / name).lstat()
        assert (st.st_uid, st.st_gid) == (3, 4)
        assert outcome(os.setxattr, union.at / name, "user.k", b"v", follow_symlinks=False) == "EPERM"
    assert os.readlink(union.at / "link") == "target"
    st = (union.at / "target").stat()
    assert (st.st_uid, st.st_mtime_ns) == (0, NANOSECONDS)
    (union.at / "dangling").rename(union.at / "moved")
    union.remount()
    assert os.readlink(union.at / "moved") == "nowhere"


def test_a_program_runs_before_and_after_copy_up(union: Union) -> None:
    script = write(union.low / "script", "#!/bin/sh\necho hello\n", mode=0o755)
    run("cp", "/bin/true", union.low / "program")
    union.mount()
    assert run(union.at / "script") == "hello\n"
    run(union.at / "program")
    for name in (script.name, "program"):
        append(union.at / name, "")
        os.utime(union.at / name)
    assert run(union.at / "script") == "hello\n"
    run(union.at / "program")


def test_inode_numbers_stay_over_copy_up_and_rename(union: Union) -> None:
    write(union.low / "f")
    write(union.low2 / "d/g")
    (union.low3 / "s").symlink_to("f")
    union.mount()
    names = ("f", "d", "s")
    before = [(union.at / name).lstat().st_ino for name in names]
    (union.at / "f").chmod(0o600)
    write(union.at / "d/new")
    run("touch", "-h", union.at / "s")
    assert [(union.at / name).lstat().st_ino for name in names] == before
    (union.at / "f").rename(union.at / "d/f")
    assert (union.at / "d/f").stat().st_ino == before[0]
    for entry in [*os.scandir(union.at), *os.scandir(union.at / "d")]:
        assert entry.inode() == os.lstat(entry.path).st_ino


def test_one_device_number_and_no_inode_number_twice(pyunion: Union) -> None:
    union = pyunion
    run("mount", "-t", "tmpfs", "low2", union.low2)
    run("mount", "-t", "tmpfs", "low3", union.low3)
    try:
        for branch in (union.low, union.low2, union.low3):
            for number in range(20):
                write(branch / f"d/{branch.name}-{number}", branch.name)
        union.mount()
        found = [path.stat() for path in (union.at / "d").iterdir()]
        assert len({st.st_ino for st in found}) == 60
        assert {st.st_dev for st in found} == {union.at.stat().st_dev}
        append(union.at / "d/lower2-3", "+")
        assert (union.at / "d/lower3-3").read_text() == "lower3"
        union.unmount()
    finally:
        run("umount", union.low2)
        run("umount", union.low3)
