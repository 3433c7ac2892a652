"""Removing and making again: where whiteouts and opaque marks are left, where not, and what they hide."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.harness.files import (
    append,
    is_whiteout,
    make_whiteout,
    mark,
    outcome,
    run,
    touch_open,
    tree,
    write,
)
from tests.harness.union import Union


@pytest.mark.parametrize("passthrough", ["auto", "off"])
def test_removing_a_lower_file_copies_nothing(pyunion: Union, passthrough: str) -> None:
    for number in range(3):
        (pyunion.low / f"big{number}").write_bytes(os.urandom(4 << 20))
    pyunion.mount(f"passthrough={passthrough}")
    run("stat", *(pyunion.at / f"big{number}" for number in range(3)))

    def remove() -> None:
        run("rm", *(pyunion.at / f"big{number}" for number in range(3)))
        run("sync", "-f", pyunion.at)

    assert pyunion.daemon.bytes_moved(remove) < 1 << 20


def test_removing_a_lower_file_leaves_a_whiteout(union: Union) -> None:
    write(union.low / "f")
    write(union.low2 / "d/g")
    union.mount()
    (union.at / "f").unlink()
    (union.at / "d/g").unlink()
    assert tree(union.at) == ["d/"]
    union.remount()
    assert tree(union.at) == ["d/"]
    union.unmount()
    assert is_whiteout(union.top / "f")
    assert is_whiteout(union.top / "d/g")
    assert mark(union.top / "d", "opaque") is None


def test_removing_what_only_upper_has_leaves_nothing(union: Union) -> None:
    write(union.low / "d/keep")
    union.mount()
    write(union.at / "f")
    (union.at / "f").unlink()
    write(union.at / "d/new")
    (union.at / "d/new").unlink()
    (union.at / "e/e").mkdir(parents=True)
    (union.at / "e/e").rmdir()
    (union.at / "e").rmdir()
    write(union.at / "a").rename(union.at / "b")
    (union.at / "b").unlink()
    union.unmount()
    assert tree(union.top) == ["d/"]


def test_removing_a_copy_of_a_lower_file_leaves_a_whiteout(union: Union) -> None:
    write(union.low / "f", "old")
    union.mount()
    append(union.at / "f", "+")
    (union.at / "f").unlink()
    write(union.at / "f", "new")
    (union.at / "f").unlink()
    union.remount()
    assert tree(union.at) == []


def test_a_name_can_be_made_again_as_any_kind_of_object(union: Union) -> None:
    names = ["directory", "fifo", "file", "hardlink", "socket", "symlink", "device"]
    for name in names:
        write(union.low / name, "old")
    write(union.low / "target", "T")
    union.mount()
    at = union.at
    for name in names:
        (at / name).unlink()
    (at / "directory").mkdir()
    os.mkfifo(at / "fifo")
    write(at / "file", "new")
    os.link(at / "target", at / "hardlink")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(at / "socket"))
    (at / "symlink").symlink_to("target")
    os.mknod(at / "device", 0o20600, os.makedev(1, 3))

    def kinds() -> dict[str, str]:
        return {name: run("stat", "-c", "%F", at / name).strip() for name in names}

    expected = {
        "directory": "directory",
        "fifo": "fifo",
        "file": "regular file",
        "hardlink": "regular file",
        "socket": "socket",
        "symlink": "symbolic link",
        "device": "character special file",
    }
    assert kinds() == expected
    union.remount()
    assert kinds() == expected
    assert (at / "file").read_text() == "new"
    assert (at / "symlink").read_text() == (at / "hardlink").read_text() == "T"


def test_a_directory_made_over_a_removed_one_is_empty_at_once(union: Union) -> None:
    write(union.low / "site/old/x")
    write(union.low2 / "site/older")
    union.mount()
    shutil.rmtree(union.at / "site")
    (union.at / "site").mkdir()
    assert os.listdir(union.at / "site") == []
    assert outcome(os.stat, union.at / "site/old") == "ENOENT"
    assert outcome(os.stat, union.at / "site/older") == "ENOENT"
    (union.at / "site/old").mkdir()
    assert os.listdir(union.at / "site/old") == []
    union.remount()
    assert tree(union.at) == ["site/", "site/old/"]
    union.unmount()
    assert mark(union.top / "site", "opaque") == b"y"


def test_a_directory_over_a_removed_file_and_the_reverse(union: Union) -> None:
    write(union.low / "x", "file")
    write(union.low2 / "x/hidden")
    write(union.low / "y/inside")
    union.mount()
    (union.at / "x").unlink()
    (union.at / "x").mkdir()
    shutil.rmtree(union.at / "y")
    write(union.at / "y", "file")
    assert tree(union.at) == ["x/", "y"]
    union.remount()
    assert tree(union.at) == ["x/", "y"]


def test_a_file_made_where_upper_holds_a_whiteout(union: Union) -> None:
    write(union.low / "f", "below")
    make_whiteout(union.top / "f")
    union.mount()
    assert outcome(os.stat, union.at / "f") == "ENOENT"
    touch_open(union.at / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert (union.at / "f").read_text() == ""


def test_a_merged_directory_that_looks_empty_can_be_removed(union: Union) -> None:
    write(union.low / "d/one")
    write(union.low2 / "d/two")
    make_whiteout(union.low / "d/two")
    union.mount()
    assert outcome(os.rmdir, union.at / "d") == "ENOTEMPTY"
    (union.at / "d/one").unlink()
    (union.at / "d").rmdir()
    assert tree(union.at) == []
    union.unmount()
    assert is_whiteout(union.top / "d")
    assert tree(union.top) == ["d"]


def test_whiteouts_in_a_pure_upper_directory_do_not_keep_it(union: Union) -> None:
    """The lower side of a whiteout can vanish while nothing is mounted."""
    write(union.low / "d/f")
    union.mount()
    (union.at / "d/f").unlink()
    union.unmount()
    shutil.rmtree(union.low / "d")
    union.mount()
    assert tree(union.at) == ["d/"]
    (union.at / "d").rmdir()
    union.unmount()
    assert tree(union.top) == []


def test_removing_a_big_tree_leaves_one_whiteout(union: Union) -> None:
    for directory in range(10):
        for number in range(50):
            write(union.low / f"t/{directory}/{number}")
    union.mount()
    shutil.rmtree(union.at / "t")
    assert tree(union.at) == []
    union.unmount()
    assert tree(union.top) == ["t"]


def test_a_failed_rmdir_leaves_the_directory_as_it_was(union: Union) -> None:
    write(union.low / "d/f")
    union.mount()
    here = os.open(union.at / "d", os.O_RDONLY)
    try:
        assert outcome(os.rmdir, union.at / "d") == "ENOTEMPTY"
        assert os.listdir(here) == ["f"]
        assert os.readlink(f"/proc/self/fd/{here}") == str(union.at / "d")
    finally:
        os.close(here)
    union.unmount()
    assert tree(union.top) in ([], ["d/"])


def test_removal_of_what_is_not_there_or_not_of_that_kind(union: Union) -> None:
    write(union.low / "d/f")
    make_whiteout(union.top / "ghost")
    union.mount()
    at = union.at
    assert outcome(os.unlink, at / "d") == "EISDIR"
    assert outcome(os.rmdir, at / "d/f") == "ENOTDIR"
    assert outcome(os.unlink, at / "ghost") == "ENOENT"
    assert outcome(os.rmdir, at / "ghost") == "ENOENT"
    assert outcome(os.mkdir, at / "d") == "EEXIST"
    assert outcome(touch_open, at / "d/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    assert outcome(os.symlink, "x", at / "d/f") == "EEXIST"
    assert outcome(os.mkfifo, at / "d/f") == "EEXIST"


def test_rm_and_remake_many_times(union: Union) -> None:
    write(union.low / "f", "lower")
    write(union.low / "d/x")
    union.mount()
    for turn in range(5):
        run("rm", "-rf", union.at / "d", union.at / "f")
        assert tree(union.at) == []
        write(union.at / "d/y", str(turn))
        write(union.at / "f", str(turn))
    union.remount()
    assert tree(union.at) == ["d/", "d/y", "f"]
    assert (union.at / "d/y").read_text() == "4"


def test_the_removed_directory_of_an_open_descriptor(union: Union) -> None:
    write(union.low / "d/f")
    union.mount()
    (union.at / "d/f").unlink()
    fd = os.open(union.at / "d", os.O_RDONLY)
    try:
        (union.at / "d").rmdir()
        assert os.listdir(fd) == []
        assert outcome(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"
        (union.at / "d").mkdir()
        write(union.at / "d/other")
        assert os.listdir(fd) == []
    finally:
        os.close(fd)


def test_whiteout_devices_cannot_be_made_or_lost(union: Union) -> None:
    union.mount()
    result = outcome(os.mknod, union.at / "null", 0o20600, 0)
    assert (result == "OK") == (union.at / "null").exists()
    assert result == "EPERM"


@pytest.mark.parametrize("over", ["file", "directory"])
def test_removal_survives_a_change_of_the_parents(union: Union, over: str) -> None:
    """A removal inside a lower directory first copies the directory up, with all that it is."""
    target = Path("p/q/x") if over == "file" else Path("p/q/x/y")
    write(union.low / target)
    os.chown(union.low / "p", 11, 12)
    (union.low / "p").chmod(0o1751)
    os.utime(union.low / "p/q", (1, 1_000_000_000))
    os.utime(union.low / "p", (1, 1_000_000_000))
    union.mount()
    run("rm", "-r", union.at / "p/q/x")
    st = (union.at / "p").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (11, 12, 0o1751)
    assert st.st_mtime == 1_000_000_000  # only its grandchild changed
    assert (union.at / "p/q").stat().st_mtime > 1_000_000_000
