"""Files that are open, mapped or locked while the union changes under them."""

from __future__ import annotations

import fcntl
import mmap
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.harness.files import append, outcome, run, tree, write
from tests.harness.union import Union


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("layer", ["low", "top"])
def test_an_unlinked_file_lives_on_in_its_descriptors(union: Union, layer: str) -> None:
    write(getattr(union, layer) / "f", "text")
    union.mount()
    with opened(union.at / "f", os.O_RDWR) as fd, opened(union.at / "f") as reader:
        (union.at / "f").unlink()
        assert outcome(os.fchmod, fd, 0o600) == "OK"
        assert outcome(os.fchown, fd, 1, 1) == "OK"
        assert outcome(os.ftruncate, fd, 100) == "OK"
        assert outcome(os.utime, fd, (1, 1)) == "OK"
        assert outcome(os.setxattr, fd, "user.x", b"1") == "OK"
        assert os.getxattr(fd, "user.x") == b"1"
        assert os.pwrite(fd, b"hi", 0) == 2
        assert outcome(os.fsync, fd) == "OK"
        assert outcome(os.posix_fallocate, fd, 0, 8192) in ("OK", "EOPNOTSUPP")
        st = os.fstat(reader)
        assert (st.st_nlink, st.st_mode & 0o777, st.st_uid) == (0, 0o600, 1)
        assert os.pread(reader, 2, 0) == b"hi"
    assert tree(union.at) == []


def test_who_has_opened_a_file_keeps_it_when_the_branch_has_another(union: Union) -> None:
    """Also if nothing was read yet: programs map what the page cache has, and need the rest hours later."""
    union.watch_lowers = False
    write(union.low / "f", "old text")
    union.mount()
    with opened(union.at / "f") as fd:
        if union.kind == "pyunion":
            union.daemon.await_open(union.low / "f")
        write(union.low / "other", "new").rename(union.low / "f")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.read(fd, 100) == b"old text"


@pytest.mark.parametrize("use", ["read", "map", "lseek", "fsync", "copy_file_range", "fchmod", "fgetxattr", "again"])
def test_whatever_a_file_is_opened_for(union: Union, use: str) -> None:
    """Each is the first thing that happens to the descriptor."""
    write(union.low / "f", "text")
    os.setxattr(union.low / "f", "user.x", b"1")
    union.mount()
    with opened(union.at / "f") as fd, opened(union.at / "g", os.O_RDWR | os.O_CREAT) as other:
        if use == "read":
            assert os.read(fd, 10) == b"text"
        elif use == "map":
            with closing(mmap.mmap(fd, 4, prot=mmap.PROT_READ)) as mapped:
                assert mapped[:] == b"text"
        elif use == "lseek":
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 4
        elif use == "fsync":
            os.fsync(fd)
        elif use == "copy_file_range":
            assert os.copy_file_range(fd, other, 10) == 4
        elif use == "fchmod":
            os.fchmod(fd, 0o600)
            assert os.fstat(fd).st_mode & 0o777 == 0o600
        elif use == "fgetxattr":
            assert os.getxattr(fd, "user.x") == b"1"
        else:
            with opened(Path(f"/proc/self/fd/{fd}")) as again:
                assert os.read(again, 10) == b"text"
        assert os.pread(fd, 10, 0) == b"text"
    assert (union.low / "f").read_text() == "text"


@pytest.mark.parametrize("change", ["append", "truncate", "replace", "chmod", "chmod and append", "append and unlink"])
def test_a_file_that_is_open_and_was_never_read_changes(pyunion: Union, change: str) -> None:
    write(pyunion.low / "f", "text")
    pyunion.mount("metacopy=on")
    path = pyunion.at / "f"
    with opened(path) as fd:
        if "chmod" in change:
            path.chmod(0o600)
        if "append" in change:
            append(path, ", more")
        if change == "truncate":
            os.truncate(path, 2)
        if change == "replace":
            write(pyunion.at / "other", "new").rename(path)
        if "unlink" in change:
            path.unlink()
        expected = "text, more" if "append" in change else "te" if change == "truncate" else "text"
        assert os.pread(fd, 100, 0).decode() == expected
        assert os.fstat(fd).st_size == len(expected)


def test_a_removed_name_made_again_is_another_file(union: Union) -> None:
    write(union.low / "f", "old")
    union.mount()
    with opened(union.at / "f") as old:
        (union.at / "f").unlink()
        write(union.at / "f", "new")
        assert os.pread(old, 10, 0) == b"old"
        assert os.fstat(old).st_ino != (union.at / "f").stat().st_ino
        assert (union.at / "f").read_text() == "new"


def test_a_file_replaced_by_rename_lives_on_in_its_descriptors(pyunion: Union) -> None:
    write(pyunion.low / "f", "old")
    pyunion.mount()
    with opened(pyunion.at / "f") as old:
        write(pyunion.at / "g", "new").rename(pyunion.at / "f")
        assert os.pread(old, 10, 0) == b"old"
        assert os.fstat(old).st_nlink == 0
    assert (pyunion.at / "f").read_text() == "new"


def test_a_descriptor_opened_before_copy_up_sees_later_writes(pyunion: Union) -> None:
    write(pyunion.low / "f", "old text")
    pyunion.mount()
    with opened(pyunion.at / "f") as before, opened(pyunion.at / "f", os.O_RDWR) as after:
        assert os.pread(before, 3, 0) == b"old"
        os.pwrite(after, b"NEW", 0)
        assert os.pread(before, 8, 0) == b"NEW text"
        os.ftruncate(after, 3)
        assert os.fstat(before).st_size == 3
        os.fchmod(before, 0o600)
        assert os.fstat(after).st_mode & 0o777 == 0o600


def test_a_descriptor_opened_before_a_metadata_only_copy_reads_the_data(union: Union) -> None:
    write(union.low / "f", "lower data")
    union.mount("metacopy=on")
    with opened(union.at / "f") as reader:
        (union.at / "f").chmod(0o600)
        assert os.pread(reader, 100, 0) == b"lower data"
        os.truncate(union.at / "f", 5)
        if union.kind == "pyunion":  # the kernel's descriptor stays with the lower file
            assert os.pread(reader, 100, 0) == b"lower"


def test_a_shared_mapping_made_before_copy_up_sees_later_writes(pyunion: Union) -> None:
    (pyunion.low / "f").write_bytes(b"A" * 8192)
    pyunion.mount()
    with (
        opened(pyunion.at / "f") as reader,
        mmap.mmap(reader, 8192, mmap.MAP_SHARED, mmap.PROT_READ) as before,
        opened(pyunion.at / "f", os.O_RDWR) as writer,
    ):
        assert before[5000] == ord("A")
        os.pwrite(writer, b"Z", 5000)
        assert before[5000] == ord("Z")
        with mmap.mmap(writer, 8192, mmap.MAP_SHARED) as after:
            after[10] = ord("Y")
        assert before[10] == ord("Y")


def test_an_unlinked_lower_file_can_be_changed_through_a_reading_descriptor(pyunion: Union) -> None:
    write(pyunion.low / "f", "lower")
    pyunion.mount()
    with opened(pyunion.at / "f") as fd:
        (pyunion.at / "f").unlink()
        os.fchmod(fd, 0o640)
        st = os.fstat(fd)
        assert (st.st_mode & 0o777, st.st_nlink) == (0o640, 0)
        assert os.pread(fd, 5, 0) == b"lower"
    assert tree(pyunion.at) == []


def test_writes_through_a_shared_mapping_reach_upper(union: Union) -> None:
    (union.low / "f").write_bytes(b"a" * 65536)
    union.mount()
    with opened(union.at / "f", os.O_RDWR) as fd, mmap.mmap(fd, 65536, mmap.MAP_SHARED) as mapping:
        mapping[5000] = ord("Z")
        assert os.pread(fd, 1, 5000) == b"Z"
        os.pwrite(fd, b"Y", 6000)
        assert mapping[6000] == ord("Y")
    union.remount()
    content = (union.at / "f").read_bytes()
    assert (content[5000], content[6000], len(content)) == (ord("Z"), ord("Y"), 65536)


def _locked_by_another(path: Path, kind: str) -> bool:
    """Whether another process is refused an exclusive lock."""
    script = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "try: getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError: sys.exit(1)\n"
    )
    return subprocess.run([sys.executable, "-c", script, path, kind]).returncode == 1


@pytest.mark.parametrize(("kind", "lock"), [("flock", fcntl.LOCK_EX), ("lockf", fcntl.LOCK_SH)])
def test_a_lock_taken_before_copy_up_holds_after_it(pyunion: Union, kind: str, lock: int) -> None:
    """An exclusive lock of fcntl takes a writable descriptor, and so would come after the copy_up."""
    write(pyunion.low / "f", "x")
    pyunion.mount()
    f = pyunion.at / "f"
    with opened(f) as holder:
        getattr(fcntl, kind)(holder, lock)
        assert tree(pyunion.top) == []
        # By another process: closing any descriptor of a file drops the fcntl locks of the process that does.
        run("sh", "-c", 'echo y >> "$0"', f)
        assert tree(pyunion.top) == ["f"]
        assert _locked_by_another(f, kind)
        getattr(fcntl, kind)(holder, fcntl.LOCK_UN)
        assert not _locked_by_another(f, kind)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_shared_lock_of_a_reader_keeps_writers_out_over_copy_up(pyunion: Union, kind: str) -> None:
    write(pyunion.low / "f", "x")
    pyunion.mount()
    f = pyunion.at / "f"
    with opened(f) as reader:
        getattr(fcntl, kind)(reader, fcntl.LOCK_SH)
        assert tree(pyunion.top) == []
        run("sh", "-c", 'echo y >> "$0"', f)  # another process: closing f in this one would drop the fcntl lock
        assert tree(pyunion.top) == ["f"]
        assert _locked_by_another(f, kind)
        getattr(fcntl, kind)(reader, fcntl.LOCK_UN)
        assert not _locked_by_another(f, kind)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_taken_after_copy_up_holds_for_a_descriptor_from_before_it(pyunion: Union, kind: str) -> None:
    write(pyunion.low / "f", "x")
    pyunion.mount()
    f = pyunion.at / "f"
    script = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with opened(f) as before:
        with subprocess.Popen(
            [sys.executable, "-c", script, f, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            lock = getattr(fcntl, kind)
            assert outcome(lock, before, fcntl.LOCK_SH | fcntl.LOCK_NB) in ("EAGAIN", "EACCES")
        assert outcome(lock, before, fcntl.LOCK_SH | fcntl.LOCK_NB) == "OK"


@pytest.mark.parametrize("layer", ["low", "top"])
def test_an_unlinked_file_can_be_opened_again_by_its_descriptor(pyunion: Union, layer: str) -> None:
    write(getattr(pyunion, layer) / "f", "text")
    pyunion.mount()
    with opened(pyunion.at / "f") as reader:
        (pyunion.at / "f").unlink()
        with opened(Path(f"/proc/self/fd/{reader}"), os.O_RDWR) as writer:
            os.write(writer, b"TEXT, more")
            assert os.fstat(writer).st_nlink == 0
        assert os.pread(reader, 99, 0) == b"TEXT, more"
    assert tree(pyunion.at) == []


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks_exclude_between_processes(union: Union, kind: str) -> None:
    union.mount()
    f = write(union.at / "f", "x")
    with opened(f, os.O_RDWR) as holder:
        getattr(fcntl, kind)(holder, fcntl.LOCK_EX)
        assert _locked_by_another(f, kind)
        waiter = subprocess.Popen(["flock", f, "true"]) if kind == "flock" else None
        assert f.stat().st_size == 1  # a waiter does not stop the others
        getattr(fcntl, kind)(holder, fcntl.LOCK_UN)
        if waiter is not None:
            assert waiter.wait(30) == 0
        assert not _locked_by_another(f, kind)


def test_direct_io(union: Union) -> None:
    union.mount()
    f = union.at / "f"
    run("dd", "if=/dev/zero", f"of={f}", "bs=64k", "count=8", "oflag=direct", "status=none")
    run("dd", f"if={f}", "of=/dev/null", "bs=64k", "iflag=direct", "status=none")
    assert f.stat().st_size == 8 * 65536


def test_append_from_two_descriptors_loses_nothing(union: Union) -> None:
    write(union.low / "log", "start\n")
    union.mount()
    log = union.at / "log"
    with opened(log, os.O_WRONLY | os.O_APPEND) as one, opened(log, os.O_WRONLY | os.O_APPEND) as two:
        for number in range(100):
            os.write((one, two)[number % 2], b"%02d\n" % number)
    assert log.read_text() == "start\n" + "".join(f"{number:02}\n" for number in range(100))


def test_sqlite_in_wal_mode_with_several_writers(union: Union) -> None:
    with closing(sqlite3.connect(union.low / "d.db")) as database:
        database.execute("create table t(x)")
        database.commit()
    union.mount()
    path = union.at / "d.db"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    script = (
        "import sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], timeout=60)\n"
        "for number in range(50):\n"
        "    database.execute('insert into t values(?)', (number,)); database.commit()\n"
        "database.close()\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select count(*) from t").fetchone() == (150,)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_fsync_of_everything(union: Union) -> None:
    write(union.low / "d/f", "x")
    union.mount()
    for path, flags in (
        (union.at / "d/f", os.O_RDONLY),
        (union.at / "d", os.O_RDONLY),
        (union.at, os.O_RDONLY),
    ):
        with opened(path, flags) as fd:
            os.fsync(fd)
            os.fdatasync(fd)
    with opened(union.at / "d/f", os.O_RDWR) as fd:
        os.write(fd, b"y")
        os.fdatasync(fd)
    run("sync", "-f", union.at)


def test_all_data_are_in_upper_when_umount_returns(union: Union) -> None:
    content = os.urandom(32 << 20)
    union.compare_with_kernel = False
    union.mount()
    (union.at / "f").write_bytes(content)
    with opened(union.at / "g", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 1 << 20)
        with mmap.mmap(fd, 1 << 20) as mapping:
            mapping[:] = b"q" * (1 << 20)
    union.unmount()
    assert (union.top / "f").read_bytes() == content
    assert (union.top / "g").read_bytes() == b"q" * (1 << 20)
