"""Hard links, symlinks, devices, fifos and sockets: made, read, changed, moved and removed in a union."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from tests.harness.files import append, make_whiteout, outcome, run, touch_open, tree, write
from tests.harness.union import Union


def identity(path: Path) -> tuple[int, int]:
    st = path.stat()
    return st.st_ino, st.st_nlink


def test_links_of_a_new_file_are_one_object(union: Union) -> None:
    union.mount()
    a, b = union.at / "a", union.at / "b"
    write(a, "one ")
    os.link(a, b)
    assert identity(a) == identity(b)
    assert b.stat().st_nlink == 2
    append(a, "two ")
    assert b.read_text() == "one two "
    a.unlink()
    assert b.stat().st_nlink == 1
    append(b, "three")
    union.remount()
    assert b.read_text() == "one two three"


def test_a_link_of_a_lower_file_into_another_layers_directory(union: Union) -> None:
    write(union.low / "a/f", "x")
    (union.low2 / "b").mkdir()
    union.mount()
    os.link(union.at / "a/f", union.at / "b/g")
    append(union.at / "b/g", "y")
    assert (union.at / "a/f").read_text() == "xy"
    union.remount()
    assert identity(union.at / "a/f") == identity(union.at / "b/g")
    assert (union.at / "a/f").stat().st_nlink == 2


def test_a_link_takes_the_place_of_a_whiteout(union: Union) -> None:
    write(union.low / "f", "old")
    write(union.low / "g", "G")
    make_whiteout(union.top / "f")
    union.mount()
    os.link(union.at / "g", union.at / "f")
    assert outcome(os.link, union.at / "g", union.at / "f") == "EEXIST"
    union.remount()
    assert (union.at / "f").read_text() == "G"


def test_link_counts_of_lower_links_do_not_depend_on_what_was_looked_up(union: Union) -> None:
    write(union.low / "x/a")
    (union.low / "y").mkdir()
    os.link(union.low / "x/a", union.low / "y/b")
    union.mount()
    counts = [(union.at / name).stat().st_nlink for name in ("x/a", "y/b", "x/a")]
    assert counts == [2, 2, 2]


def test_links_of_symlinks_and_special_files(union: Union) -> None:
    (union.low / "s").symlink_to("target")
    os.mkfifo(union.low / "p")
    union.mount()
    for name in ("s", "p"):
        os.link(union.at / name, union.at / f"{name}2", follow_symlinks=False)
        assert (union.at / name).lstat().st_ino == (union.at / f"{name}2").lstat().st_ino
    assert os.readlink(union.at / "s2") == "target"
    assert outcome(os.link, union.at / "p", union.at / "p2") == "EEXIST"


def test_directories_have_no_hard_links(union: Union) -> None:
    (union.low / "d").mkdir()
    union.mount()
    assert outcome(os.link, union.at / "d", union.at / "e") == "EPERM"


def test_symlinks_of_any_text_and_length(union: Union) -> None:
    texts = [b"x" * 4095, b"\xff\xfe/\n", b"/absolute", b"../../out"]
    for number, text in enumerate(texts):
        os.symlink(text, os.fsencode(union.low / f"low{number}"))
    union.mount()
    for number, text in enumerate(texts):
        os.symlink(text, os.fsencode(union.at / f"up{number}"))
        for name in (f"low{number}", f"up{number}"):
            assert os.readlink(os.fsencode(union.at / name)) == text
            assert (union.at / name).lstat().st_size == len(text)


def make_nodes(where: Path) -> dict[str, Path]:
    nodes = {name: where / name for name in ("fifo", "null", "loop", "socket")}
    os.mkfifo(nodes["fifo"])
    os.mknod(nodes["null"], stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(nodes["loop"], stat.S_IFBLK | 0o600, os.makedev(7, 250))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(nodes["socket"]))
    return nodes


def test_special_files_of_a_lower_branch_change_and_move(union: Union) -> None:
    """A daemon that opened one of them to copy it up would hang."""
    names = make_nodes(union.low)
    union.mount()
    for name in names:
        node = union.at / name
        run("getfattr", "-d", "-m", "-", node)
        before = node.stat()
        node.chmod(0o604)
        os.chown(node, 3, 4)
        os.utime(node, (1, 1_000_000_000))
        os.setxattr(node, "trusted.k", b"v")
        node.rename(union.at / f"{name}.moved")
        st = (union.at / f"{name}.moved").stat()
        assert (stat.S_IFMT(st.st_mode), st.st_rdev) == (stat.S_IFMT(before.st_mode), before.st_rdev)
        assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_mtime) == (0o604, 3, 1_000_000_000)
    union.remount()
    assert tree(union.at) == [f"{name}.moved" for name in sorted(names)]


def test_new_special_files_work(union: Union) -> None:
    union.mount()
    nodes = make_nodes(union.at)
    nodes["null"].write_text("swallowed")
    assert nodes["null"].read_text() == ""
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(nodes["fifo"].read_bytes()))
    reader.start()
    nodes["fifo"].write_bytes(b"through the pipe")
    reader.join(30)
    assert answers == [b"through the pipe"]
    nodes["socket"].unlink()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(nodes["socket"]))
        server.listen()
        client.connect(str(nodes["socket"]))
        accepted, _ = server.accept()
        accepted.close()


def test_a_device_of_a_lower_branch_opens(union: Union) -> None:
    os.mknod(union.low / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    union.mount()
    with (union.at / "zero").open("rb") as file:
        assert file.read(3) == b"\0\0\0"
    touch_open(union.at / "zero", os.O_RDWR)


@pytest.mark.parametrize("kind", ["fifo", "null", "socket"])
def test_special_files_are_removed_and_replaced(union: Union, kind: str) -> None:
    make_nodes(union.low)
    union.mount()
    (union.at / kind).unlink()
    write(union.at / kind, "a file now")
    union.remount()
    assert (union.at / kind).read_text() == "a file now"


def test_a_file_without_a_name_is_made_or_cleanly_refused(union: Union) -> None:
    union.mount()
    try:
        fd = os.open(union.at, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        refusal = error.errno
    else:
        refusal = errno.EOPNOTSUPP
        os.write(fd, b"x")
        os.close(fd)
    assert refusal == errno.EOPNOTSUPP  # programs know it and make a file with a name instead
    assert tree(union.at) == []
