"""chattr(1) +a and +i: what is append-only or immutable in a lower branch, by the mount, or by a mark in upper.

Upper has a mark for it (Linux 5.15), as an object that has the flag could be neither renamed nor linked. The branches
are on a file system that has these flags.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.files import RENAME_EXCHANGE, append, mark, outcome, renameat2, run, touch_open, tree, write
from tests.harness.mounts import KernelMount, Layers, PyunionMount
from tests.harness.union import Union

ACL = bytes.fromhex(  # a version; then tag, permissions and id of each entry
    "02000000 0100 0700 ffffffff 0200 0400 e8030000 0400 0500 ffffffff 1000 0700 ffffffff 2000 0500 ffffffff"
)
# How an object has come to its flags.
BELOW, COPIED, THROUGH, FOUND = "in lower", "copied up", "by the mount", "found in upper"
WAYS = (BELOW, COPIED, THROUGH, FOUND)


@pytest.fixture
def flagged(union: Union) -> Iterator[Union]:
    """A union whose branches can be removed at the end, whatever flags are in them."""
    yield union
    union.clean_up()
    run("chattr", "-R", "-f", "-ai", union.base, check=False)  # it complains about symlinks


def flags(path: Path) -> str:
    """Which of the flags that overlayfs keeps are shown by lsattr(1)."""
    return "".join(sorted(set(run("lsattr", "-d", path).split()[0]) & set("aiAS")))


def make_file(path: Path) -> None:
    write(path, "text")
    os.setxattr(path, "user.a", b"a")


def make_directory(path: Path) -> None:
    write(path / "file")
    write(path / "sub/below")
    (path / "empty").mkdir()
    os.setxattr(path, "user.a", b"a")


def prepare(union: Union, way: str, flag: str, make: Callable[[Path], None], *options: str) -> Path:
    """Mount with an object that has come to its flags in one of the ways, and another one beside it."""
    make(union.low / "d/it")
    write(union.low / "d/other")
    if way in (BELOW, COPIED):
        run("chattr", f"+{flag}", union.low / "d/it")
    union.mount(*options)
    it = union.at / "d/it"
    if way == COPIED:
        if it.is_dir():
            append(it / "sub/below", "+")
        else:
            run("chattr", "+A", it)  # which leaves the other flags as they are
    elif way != BELOW:
        run("chattr", f"+{flag}", it)
    if way == FOUND:
        union.remount()
    return it


def changes(it: Path) -> dict[str, Callable[[], object]]:
    """Changes of a file or directory; those of names come last, in case one is not refused."""
    other = it.with_name("other")
    return {
        "chmod": lambda: it.chmod(0o700),
        "chown": lambda: os.chown(it, 5, 5),
        "set times": lambda: os.utime(it, (1, 1)),
        "touch": lambda: os.utime(it),
        "set xattr": lambda: os.setxattr(it, "user.a", b"b"),
        "remove xattr": lambda: os.removexattr(it, "user.a"),
        "set ACL": lambda: os.setxattr(it, "system.posix_acl_access", ACL),
        "rename": lambda: it.rename(it.with_name("moved")),
        "exchange": lambda: renameat2(it, other, RENAME_EXCHANGE),
        "exchanged": lambda: renameat2(other, it, RENAME_EXCHANGE),
    }


def file_changes(it: Path) -> dict[str, Callable[[], object]]:
    return {
        "write": lambda: touch_open(it, os.O_WRONLY),
        "read and write": lambda: touch_open(it, os.O_RDWR),
        "append": lambda: append(it, "+"),
        "append to what was cut": lambda: touch_open(it, os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
        "truncate": lambda: os.truncate(it, 1),
        "read": lambda: touch_open(it, os.O_RDONLY),
        "link": lambda: os.link(it, it.with_name("link")),
        "replace": lambda: it.with_name("other").rename(it),
        "unlink": it.unlink,
    }


def directory_changes(it: Path) -> dict[str, Callable[[], object]]:
    other = it.with_name("other")
    return {
        "change what is in it": lambda: append(it / "file", "+"),
        "new file": lambda: touch_open(it / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        "new directory": lambda: (it / "newdir").mkdir(),
        "new symlink": lambda: (it / "symlink").symlink_to("x"),
        "new pipe": lambda: os.mkfifo(it / "pipe"),
        "nameless file": lambda: touch_open(it, os.O_WRONLY | os.O_TMPFILE),
        "link into it": lambda: os.link(other, it / "link"),
        "unlink": (it / "file").unlink,
        "rmdir": (it / "empty").rmdir,
        "rmdir of a full one": (it / "sub").rmdir,
        "rename within": lambda: (it / "file").rename(it / "renamed"),
        "rename out": lambda: (it / "file").rename(other.with_name("out")),
        "rename over": lambda: other.rename(it / "file"),
        "rename in": lambda: other.rename(it / "in"),
        "remove it": it.rmdir,
    }


ALWAYS = {"read", "change what is in it"}
ALLOWED = {
    "a": ALWAYS | {"touch", "append", "new file", "new directory", "new symlink", "new pipe", "nameless file",
                   "link into it", "rename in"},
    "i": ALWAYS,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flag", ["a", "i", "ai"])
def test_what_is_append_only_or_immutable_stays(flagged: Union, flag: str, way: str, kind: str) -> None:
    it = prepare(flagged, way, flag, make_file if kind == "file" else make_directory)
    before = tree(flagged.at)
    tried = changes(it) | (file_changes(it) if kind == "file" else directory_changes(it))
    said = {what: outcome(change) for what, change in tried.items()}
    allowed = set.intersection(*(ALLOWED[each] for each in flag))
    assert {what for what, result in said.items() if result == "OK"} == allowed & tried.keys()
    assert set(said.values()) <= {"OK", "EPERM"}
    assert set(before) <= set(tree(flagged.at)) | {"d/other"}
    flagged.remount()
    assert flags(it).strip("A") == flag
    assert outcome(it.chmod, 0o700) == "EPERM"


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("flag", ["a", "i", "ai"])
@pytest.mark.parametrize("way", [COPIED, THROUGH])
def test_upper_says_by_a_mark_what_is_append_only_or_immutable(flagged: Union, way: str, flag: str, kind: str) -> None:
    """The object in upper has no such flag. Both implementations heed the mark of the other."""
    it = prepare(flagged, way, flag, make_file if kind == "file" else make_directory)
    assert mark(flagged.top / "d/it", "protattr") == flag.encode()
    assert flags(flagged.top / "d/it").strip("A") == ""
    assert flags(it).strip("A") == flag
    flagged.unmount()
    other = (KernelMount if flagged.kind == "pyunion" else PyunionMount)(flagged.at)
    other.start(Layers([flagged.low], flagged.top, flagged.work))
    try:
        assert flags(it).strip("A") == flag
        assert outcome(it.chmod, 0o700) == "EPERM"
        run("chattr", f"-{flag}", it)
        assert mark(flagged.top / "d/it", "protattr") is None
        assert outcome(it.chmod, 0o700) == "OK"
    finally:
        other.stop()


@pytest.mark.parametrize("way", WAYS)
def test_the_flags_can_be_changed_and_taken_away(flagged: Union, way: str) -> None:
    it = prepare(flagged, way, "ai", make_file)
    run("chattr", "-i", it)
    assert flags(it).strip("A") == "a"
    append(it, "+")
    run("chattr", "-a", "+i", it)
    assert flags(it).strip("A") == "i"
    assert outcome(append, it, "+") == "EPERM"
    run("chattr", "-i", it)
    it.write_text("changed")
    os.link(it, it.with_name("link"))
    it.unlink()
    assert mark(flagged.top / "d/link", "protattr") is None


def test_one_time_alone_is_not_touched(flagged: Union) -> None:
    it = prepare(flagged, BELOW, "a", make_file)
    assert "not permitted" in run("touch", "-a", it, check=False)
    assert "not permitted" in run("touch", "-m", it, check=False)
    run("touch", it)


def test_a_descriptor_of_an_append_only_file_overwrites_nothing(flagged: Union) -> None:
    """Though a FUSE mount lets O_APPEND be taken from it."""
    it = prepare(flagged, BELOW, "a", make_file)
    fd = os.open(it, os.O_WRONLY | os.O_APPEND)
    if outcome(fcntl.fcntl, fd, fcntl.F_SETFL, 0) == "OK":
        assert outcome(os.pwrite, fd, b"+", 0) == "EPERM"
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"+")
    os.close(fd)
    assert it.read_text() == "text+"


def test_an_append_only_file_is_only_appended_to(flagged: Union) -> None:
    it = prepare(flagged, BELOW, "a", make_file)
    fd = os.open(it, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"+")
    assert outcome(os.ftruncate, fd, 0) == "EPERM"
    assert outcome(os.truncate, it, 0) == "EPERM"
    os.write(fd, b"-")
    os.close(fd)
    assert it.read_text() == "text+-"
    flagged.remount()
    append(it, "!")
    assert it.read_text() == "text+-!"
    assert (flagged.low / "d/it").read_text() == "text"


def test_no_hole_is_cut_into_an_append_only_file(flagged: Union) -> None:
    it = prepare(flagged, BELOW, "a", make_file)
    with it.open("a") as file:
        os.posix_fallocate(file.fileno(), 0, 8192)
        keep_size, punch_hole = 1, 2
        libc = ctypes.CDLL(None, use_errno=True)
        offset, length = ctypes.c_int64(0), ctypes.c_int64(4096)
        assert libc.fallocate(file.fileno(), keep_size | punch_hole, offset, length) == -1
        assert ctypes.get_errno() == errno.EPERM
    assert it.read_bytes() == b"text".ljust(8192, b"\0")


@pytest.mark.parametrize("way", WAYS)
def test_all_names_of_a_file_are_protected(flagged: Union, way: str) -> None:
    def make(path: Path) -> None:
        make_file(path)
        os.link(path, path.with_name("twin"))

    twin = prepare(flagged, way, "i", make, "index=on").with_name("twin")
    assert outcome(twin.unlink) == outcome(append, twin, "+") == "EPERM"


def test_the_root_of_the_union_is_protected(flagged: Union) -> None:
    """By the kernel until it is unmounted, though it leaves the mark."""
    write(flagged.low / "f")
    flagged.mount()
    run("chattr", "+i", flagged.at)
    for _ in range(2):
        assert outcome(write, flagged.at / "new") == outcome((flagged.at / "f").unlink) == "EPERM"
        append(flagged.at / "f", "+")
        if flagged.kind == "pyunion":
            flagged.remount()
    assert mark(flagged.top, "protattr") == b"i"
    run("chattr", "-i", flagged.at)
    (flagged.at / "f").unlink()


@pytest.mark.parametrize("make", [make_file, make_directory])
def test_copy_up_takes_the_flags_for_writes_and_access_times_along(
    flagged: Union, make: Callable[[Path], None]
) -> None:
    make(flagged.low / "d/it")
    run("chattr", "+AS", flagged.low / "d/it")
    flagged.mount()
    (flagged.at / "d/it").chmod(0o700)
    assert flags(flagged.at / "d/it") == flags(flagged.top / "d/it") == "AS"


@pytest.mark.parametrize("value", [b"", b"x", b"ix", b"a i"])
def test_a_mark_that_is_not_known_protects_nothing(flagged: Union, value: bytes) -> None:
    write(flagged.top / "f")
    os.setxattr(flagged.top / "f", "trusted.overlay.protattr", value)
    flagged.mount()
    assert flags(flagged.at / "f") == ""
    append(flagged.at / "f", "+")


def test_a_mark_in_a_lower_branch_protects_nothing(flagged: Union) -> None:
    write(flagged.low / "f")
    os.setxattr(flagged.low / "f", "trusted.overlay.protattr", b"i")
    flagged.mount()
    append(flagged.at / "f", "+")
    assert mark(flagged.top / "f", "protattr") is None


def test_a_descriptor_from_before_takes_no_copied_range_any_more(flagged: Union) -> None:
    """copy_file_range(2) and fallocate(2) ask again, where write(2) does not."""
    write(flagged.top / "from", "text")
    write(flagged.top / "to", "")
    flagged.mount()
    with (flagged.at / "from").open("rb") as source, (flagged.at / "to").open("r+b", buffering=0) as target:
        run("chattr", "+i", flagged.at / "to")
        assert outcome(os.copy_file_range, source.fileno(), target.fileno(), 4) == "EPERM"
        assert target.write(b"kept") == 4
    run("chattr", "-i", flagged.at / "to")
    assert (flagged.at / "to").read_text() == "kept"


@pytest.mark.xfail(strict=True, reason="FUSE does not pass the attribute flags of statx on")
def test_statx_says_what_is_immutable(pyunion: Union) -> None:
    write(pyunion.low / "f")
    pyunion.mount()
    run("chattr", "+i", pyunion.at / "f")
    try:
        answer = ctypes.create_string_buffer(256)
        assert ctypes.CDLL(None).statx(-100, os.fsencode(pyunion.at / "f"), 0, 0, answer) == 0
        (attributes,) = struct.unpack_from("=Q", answer, 8)
        assert attributes & 0x10  # STATX_ATTR_IMMUTABLE
    finally:
        run("chattr", "-i", pyunion.at / "f")
