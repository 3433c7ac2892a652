"""A fixed list of what people do to a tree, with each result as a value: two file systems agree when these are equal.

Acts below any directory that holds what `fill` has made, and knows nothing of unions.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from tests.harness.files import append, outcome, run, tree, write

_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_raw+ep, capabilities(7)
_MIB = 1 << 20
BIG = 24 * _MIB
PAST = 1_000_000_000
_USERS = ((7, 7), (8, 8), (12, 12), (1000, 1000))


def fill(top: Path) -> None:
    """What a lower branch holds: something of each kind for each operation."""
    write(top / "read/file", "to be read\n", mode=0o640)
    os.chown(top / "read/file", 7, 8)
    (top / "read/link").symlink_to("file")
    os.mkfifo(top / "read/fifo", 0o600)
    os.mknod(top / "read/null", 0o20666, os.makedev(1, 3))
    for number in range(300):
        write(top / f"read/many/{number}", str(number))
    for name in ("xattrs/file", "xattrs/program", "xattrs/untouched"):
        write(top / name, name, mode=0o755)
        os.setxattr(top / name, "user.note", name.encode())
    os.setxattr(top / "xattrs/program", "security.capability", _CAPABILITY)
    run("setfacl", "-m", "u:12:r", top / "xattrs/file")
    for name in ("one", "two"):
        write(top / f"links/{name}/file", name)
        os.link(top / f"links/{name}/file", top / f"links/{name}/other")
        os.link(top / f"links/{name}/file", top / f"links/{name}-outside")
    for name in ("renamed", "removed", "replaced"):
        write(top / f"{name}/deep/er/file", f"{name}\n")
        write(top / f"{name}/file", f"{name}\n")
    (top / "sparse").mkdir()
    for name in ("hole-first", "all-hole"):
        with (top / "sparse" / name).open("wb") as file:
            file.truncate(8 * _MIB)
            if name == "hole-first":
                file.seek(6 * _MIB)
                file.write(b"data after a hole")
    (top / "big").mkdir()
    (top / "big/file").write_bytes(random.Random(1).randbytes(BIG))
    write(top / "times/kept", "old", mode=0o644)
    os.utime(top / "times/kept", (PAST, PAST))


def _read(top: Path) -> object:
    files = ["read/link", "read/many/7", "big/file", "sparse/hole-first"]
    return [_digest(top / name) for name in files], tree(top), sorted(os.listdir(top / "read/many"), key=int)


def _read_as_others(top: Path) -> object:
    """Owner, group and others are let in by mode and ACL."""
    names = ("read/file", "read/above", "read/many/7", "xattrs/file", "renamed/file")
    return [_said_to(["cat", str(top / name)], uid, gid) for name in names for uid, gid in _USERS]


def _said_to(command: list[str], uid: int, gid: int) -> str:
    """What a program says as another user, without the path that it complains of."""
    become = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return run("setpriv", *become, *command, check=False).rpartition(": ")[2]


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def _change_what_has_xattrs(top: Path) -> object:
    os.chown(top / "xattrs/file", 5, 6)
    said = [outcome(os.setxattr, top / "xattrs/file", "user.more", b"1")]
    removed = outcome(os.removexattr, top / "xattrs/program", "user.note")
    said.append(removed.replace("ENOTSUP", "ENODATA"))  # a branch without xattrs has it no more than others
    append(top / "xattrs/untouched", "!")
    return said, run("getfacl", "--omit-header", "--absolute-names", top / "xattrs/file")


def _change_links(top: Path) -> object:
    append(top / "links/one/file", "+")
    (top / "links/two-outside").unlink()
    os.link(top / "links/two/other", top / "links/two/third")
    (top / "links/two/file").chmod(0o600)
    files = [path for path in sorted((top / "links").glob("**/*")) if path.is_file()]
    return [(path.name, path.read_text(), path.stat().st_nlink, path.stat().st_mode) for path in files]


def _rename_directories(top: Path) -> object:
    (top / "renamed").rename(top / "elsewhere")
    (top / "elsewhere/deep").rename(top / "read/deep")
    append(top / "read/deep/er/file", "after the rename\n")
    write(top / "renamed/new", "in the old place")
    return tree(top / "elsewhere"), tree(top / "renamed"), (top / "read/deep/er/file").read_text()


def _remove_and_make_again(top: Path) -> object:
    shutil.rmtree(top / "removed")
    shutil.rmtree(top / "replaced")
    (top / "replaced").mkdir()
    write(top / "replaced/file", "another\n")
    said = [outcome(os.rmdir, top / "read"), outcome(os.stat, top / "removed/file")]
    (top / "read/file").unlink()
    (top / "read/file").mkdir()
    return said, tree(top / "replaced"), tree(top / "read")


def _change_sparse_files(top: Path) -> object:
    append(top / "sparse/hole-first", "more")
    os.truncate(top / "sparse/all-hole", 16 * _MIB)
    with (top / "sparse/new").open("wb") as new:
        new.seek(20 * _MIB)
        new.write(b"end")
    return [_digest(path) for path in sorted((top / "sparse").iterdir())]


def _change_big_files(top: Path) -> object:
    with (top / "big/file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        file.seek(BIG // 2)
        file.write(b"by write")
        mapped[-8:] = b"by mmap\n"
    shutil.copy(top / "big/file", top / "big/copy")
    with (top / "big/copy").open("ab") as copy:
        os.fsync(copy.fileno())
    return [_digest(path) for path in sorted((top / "big").iterdir())]


def _keep_times(top: Path) -> object:
    before = (top / "times/kept").stat().st_mtime_ns
    (top / "times/kept").chmod(0o600)
    os.utime(top / "times", (PAST, PAST))
    return (top / "times/kept").stat().st_mtime_ns - before, (top / "times").stat().st_mtime_ns


def _make_new(top: Path) -> object:
    write(top / "new/dir/file", "new", mode=0o4755)
    (top / "new/link").symlink_to("dir/file")
    os.mkfifo(top / "new/fifo")
    os.mknod(top / "new/null", 0o20600, os.makedev(1, 3))
    os.link(top / "new/dir/file", top / "new/hard")
    os.rename(top / "new/hard", top / "new/dir/hard")
    return tree(top / "new"), (top / "new/dir/file").stat().st_nlink


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "read": _read,
    "read as others": _read_as_others,
    "xattrs": _change_what_has_xattrs,
    "links": _change_links,
    "rename": _rename_directories,
    "remove": _remove_and_make_again,
    "sparse": _change_sparse_files,
    "big": _change_big_files,
    "times": _keep_times,
    "new": _make_new,
}


def carry_out(top: Path, leave_out: Collection[str] = ()) -> dict[str, object]:
    """Everything of the list in its order, but for some; the result of each."""
    return {name: operation(top) for name, operation in OPERATIONS.items() if name not in leave_out}
