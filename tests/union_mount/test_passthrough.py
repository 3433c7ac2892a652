"""Passthrough: what the kernel reads and writes by itself, and that nothing else differs by it."""

from __future__ import annotations

import mmap
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.harness.files import append, run, tree, write
from tests.harness.union import Union

_SIZE = 8 << 20
_LITTLE = 1 << 20


def read_anew(path: Path) -> None:
    """Read a file that no cache of the mount has."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        while os.read(fd, 1 << 17):
            pass
    finally:
        os.close(fd)


@pytest.mark.parametrize("origin", ["new", "copied up", "already in upper"])
def test_a_file_of_upper_passes_the_daemon_by(pyunion: Union, origin: str) -> None:
    path = pyunion.at / "f"
    if origin == "copied up":
        (pyunion.low / "f").write_bytes(os.urandom(_SIZE))
    if origin == "already in upper":
        (pyunion.top / "f").write_bytes(os.urandom(_SIZE))
    pyunion.mount()
    if origin == "copied up":
        append(path, "+")
    assert pyunion.daemon.bytes_moved(lambda: path.write_bytes(os.urandom(_SIZE))) < _LITTLE
    assert pyunion.daemon.bytes_moved(lambda: read_anew(path)) < _LITTLE
    run("cmp", path, pyunion.top / "f")


def test_so_does_a_file_of_a_union_that_never_changes(pyunion: Union) -> None:
    (pyunion.low / "f").write_bytes(os.urandom(_SIZE))
    for options in ([], ["ro"]):
        pyunion.mount(*options, writable=bool(options))
        assert pyunion.daemon.bytes_moved(lambda: read_anew(pyunion.at / "f")) < _LITTLE
        pyunion.unmount()


def test_a_lower_file_that_may_yet_change_does_not(pyunion: Union) -> None:
    """Who reads it has to see what is written later, to another file."""
    (pyunion.low / "f").write_bytes(os.urandom(_SIZE))
    pyunion.mount()
    assert pyunion.daemon.bytes_moved(lambda: read_anew(pyunion.at / "f")) >= _SIZE


def test_it_can_be_switched_off(pyunion: Union) -> None:
    (pyunion.top / "f").write_bytes(os.urandom(_SIZE))
    pyunion.mount("passthrough=off")
    assert pyunion.daemon.bytes_moved(lambda: read_anew(pyunion.at / "f")) >= _SIZE


def test_readers_from_before_copy_up_and_writers_share_a_file(union: Union) -> None:
    """All descriptors of a file that are open at a time have to be of one kind, for the kernel."""
    write(union.low / "f", "lower\n")
    union.mount()
    path = union.at / "f"
    with path.open() as before:
        with path.open("a") as first, path.open("r+") as second:
            first.write("one\n")
            first.flush()
            second.write("LOWER")
            second.flush()
            assert run("cat", path) == "LOWER\none\n"
        if union.kind == "pyunion":
            assert before.read() == "LOWER\none\n"
    append(path, "two\n")
    assert path.read_text() == "LOWER\none\ntwo\n"
    union.remount()
    assert path.read_text() == "LOWER\none\ntwo\n"


def test_a_write_to_a_mapping_is_seen_in_the_times(union: Union) -> None:
    write(union.low / "copied", "x" * 5000)
    union.mount()
    append(union.at / "copied", "x")
    write(union.at / "new", "x" * 5000)
    for name in ("copied", "new"):
        path = union.at / name
        os.utime(path, (1, 1))
        changed = path.stat().st_ctime_ns
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
            data[10] = ord("y")
            data.flush()
            assert path.stat().st_mtime_ns > 2 * 10**9
        st = path.stat()
        assert st.st_mtime_ns > 2 * 10**9
        assert st.st_ctime_ns > changed
        union.remount()
        assert path.stat().st_mtime_ns == st.st_mtime_ns


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR])
@pytest.mark.parametrize("change", ["write", "truncate", "fallocate", "copy_file_range", "setuid"])
def test_what_is_done_with_a_descriptor_is_seen_in_the_attributes(union: Union, flags: int, change: str) -> None:
    write(union.low / "copied", "x" * 5000)
    write(union.low / "source", "y" * 3000)
    union.mount()
    append(union.at / "copied", "x")
    write(union.at / "new", "x" * 5001)
    for name in ("copied", "new"):
        path = union.at / name
        fd, source = os.open(path, flags), os.open(union.at / "source", os.O_RDONLY)
        try:
            os.utime(path, (1, 1))
            before = path.stat()
            assert (before.st_mtime, before.st_size) == (1, 5001)
            match change:
                case "write":
                    os.lseek(fd, 5000, os.SEEK_SET)
                    os.write(fd, b"zz")
                case "truncate":
                    os.ftruncate(fd, 17)
                case "fallocate":
                    os.posix_fallocate(fd, 0, 9000)
                case "copy_file_range":
                    if flags & os.O_APPEND:
                        with pytest.raises(OSError, match="Bad file descriptor"):
                            os.copy_file_range(source, fd, 3000, 0, 4000)
                        continue
                    os.copy_file_range(source, fd, 3000, 0, 4000)
                case "setuid":
                    path.chmod(0o4755)
            seen, there = path.stat(), os.stat(union.top / name)
            assert os.fstat(fd) == seen
            for part in ("st_size", "st_mode", "st_mtime_ns", "st_ctime_ns", "st_blocks"):
                assert getattr(seen, part) == getattr(there, part), part
            assert (seen.st_mtime_ns > 2 * 10**9) is (change != "setuid")
        finally:
            os.close(fd)
            os.close(source)


_ALL = "passthrough=all"


def mount_all(union: Union, *options: str) -> None:
    union.mount(*options, *([_ALL] if union.kind == "pyunion" else []))


def test_with_all_lower_files_pass_the_daemon_by(pyunion: Union) -> None:
    (pyunion.low / "f").write_bytes(os.urandom(_SIZE))
    pyunion.mount(_ALL)
    assert pyunion.daemon.bytes_moved(lambda: read_anew(pyunion.at / "f")) < _LITTLE
    run("cmp", pyunion.at / "f", pyunion.low / "f")


@pytest.mark.parametrize("metacopy", ["metacopy=off", "metacopy=on"])
@pytest.mark.parametrize(
    "change", ["append", "truncate", "open with O_TRUNC", "chmod and append", "mmap", "append to g"]
)
def test_with_all_those_who_have_a_lower_file_open_keep_it_and_others_see_what_is_written(
    union: Union, change: str, metacopy: str
) -> None:
    """As the kernel's overlayfs has it for mappings. There is one file, by its number and its names."""
    write(union.low / "f", "lower" * 1000)
    os.link(union.low / "f", union.low / "g")
    union.compare_with_kernel = False  # by layers only, where the names of an indexed file part
    mount_all(union, metacopy, "index=on")
    path, other = union.at / "f", union.at / "g"
    number = path.stat().st_ino
    with path.open("rb") as old, mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ) as mapped, other.open("rb") as by_g:
        assert mapped[:5] == b"lower"
        expected = b"lower" * 1000
        match change:
            case "append" | "append to g":
                append(path if change == "append" else other, "+")
                expected += b"+"
            case "truncate":
                os.truncate(path, 7)
                expected = expected[:7]
            case "open with O_TRUNC":
                path.write_text("new")
                expected = b"new"
            case "chmod and append":
                path.chmod(0o600)
                assert other.read_bytes() == expected
                append(path, "+")
                expected += b"+"
            case "mmap":
                with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
                    data[0] = ord("L")
                    data.flush()
                expected = b"L" + expected[1:]
        assert mapped[:5] == b"lower"
        for name in (path, other):
            assert name.read_bytes() == expected
            with name.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
                assert data[:] == expected
                assert os.fstat(file.fileno()).st_ino == number
            st = name.stat()
            assert (st.st_ino, st.st_nlink, st.st_size) == (number, 2, len(expected))
        for descriptor in (old, by_g):
            st = os.fstat(descriptor.fileno())
            assert (st.st_ino, st.st_nlink, st.st_size) == (number, 2, len(expected))
        if union.kind == "pyunion":
            assert os.pread(old.fileno(), 5, 0) == b"lower"
    append(other, "end")
    assert path.read_bytes() == expected + b"end"
    assert (union.low / "f").read_text() == "lower" * 1000
    union.remount()
    assert path.read_bytes() == expected + b"end"
    assert path.stat().st_ino == number


def test_with_all_what_is_open_can_be_opened_again_by_its_descriptor_to_be_read(pyunion: Union) -> None:
    write(pyunion.low / "f", "lower")
    pyunion.mount(_ALL)
    with (pyunion.at / "f").open() as old:
        append(pyunion.at / "f", "+")
        with Path(f"/proc/self/fd/{old.fileno()}").open() as again:
            assert (old.read(), again.read()) == ("lower", "lower")
        with pytest.raises(OSError, match="Stale"):
            os.open(f"/proc/self/fd/{old.fileno()}", os.O_RDWR)
    assert (pyunion.at / "f").read_text() == "lower+"


def test_with_all_a_running_program_keeps_its_file(union: Union) -> None:
    (union.low / "prog").write_bytes(Path("/bin/sleep").read_bytes())
    (union.low / "prog").chmod(0o755)
    mount_all(union)
    program = union.at / "prog"
    with subprocess.Popen([program, "1000"]) as running:
        try:
            with pytest.raises(OSError, match="Text file busy"):
                program.open("r+b")
            program.chmod(0o700)
            assert run(program, "--version").startswith("sleep")
            program.unlink()
            program.write_text("#!/bin/sh\necho new\n")
            program.chmod(0o755)
            assert run(program) == "new\n"
            assert running.poll() is None
        finally:
            running.kill()


def test_noatime_holds_for_what_is_read(pyunion: Union) -> None:
    write(pyunion.top / "f", "text")
    os.utime(pyunion.top / "f", (1, 1))
    pyunion.mount("noatime")
    assert (pyunion.at / "f").read_text() == "text"
    assert (pyunion.at / "f").stat().st_atime == 1
    assert (pyunion.top / "f").stat().st_atime == 1


@pytest.mark.parametrize("way", ["write", "mmap"])
def test_setuid_that_comes_while_a_file_is_open_goes_by_the_next_write(union: Union, way: str) -> None:
    """By whoever has opened it. A mapping tells nobody, on any file system."""
    union.mount()
    write(union.at / "f", "x", mode=0o777)
    os.chown(union.at / "f", 1000, 1000)
    script = (
        "import mmap, os, sys\n"
        "os.setresgid(1000, 1000, 1000); os.setgroups([]); os.setresuid(1000, 1000, 1000)\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "data = mmap.mmap(fd, 1)\n"
        "print('open', flush=True); input()\n"
        "if sys.argv[2] == 'write': os.write(fd, b'y')\n"
        "else: data[0] = 121; data.flush()\n"
        "print('written', flush=True); input()\n"
    ).replace("os.setresgid(1000, 1000, 1000); os.setgroups([]);", "os.setgroups([]); os.setresgid(1000, 1000, 1000);")
    with subprocess.Popen(
        ["python3", "-c", script, union.at / "f", way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "open\n"
        (union.at / "f").chmod(0o6777)
        assert stat.S_IMODE((union.at / "f").stat().st_mode) == 0o6777
        user.stdin.write("\n")
        user.stdin.flush()
        assert user.stdout.readline() == "written\n"
        kept = 0o777 if way == "write" else 0o6777
        assert stat.S_IMODE((union.at / "f").stat().st_mode) == kept
        user.stdin.write("\n")
        user.stdin.flush()
    assert (union.at / "f").read_text() == "y"


@pytest.mark.parametrize("kind", ["overlay", "pyunion"])
def test_an_upper_that_is_a_union_itself(pyunion: Union, scratch: Path, kind: str) -> None:
    """Its files cannot be passed through; everything works without."""
    (scratch / "inner").mkdir()
    inner = Union(scratch / "inner", kind="kernel" if kind == "overlay" else kind)
    inner.mount()
    try:
        pyunion.top, pyunion.work = inner.at / "upper", inner.at / "work"
        pyunion.top.mkdir()
        pyunion.work.mkdir()
        pyunion.compare_with_kernel = False
        write(pyunion.low / "f", "lower\n")
        pyunion.mount()
        append(pyunion.at / "f", "more\n")
        write(pyunion.at / "new", "new\n")
        append(pyunion.at / "new", "more\n")
        pyunion.remount()
        assert tree(pyunion.at) == ["f", "new"]
        assert run("cat", pyunion.at / "f", pyunion.at / "new") == "lower\nmore\nnew\nmore\n"
        pyunion.unmount()
    finally:
        inner.clean_up()
