"""Every kind of change, as something that can be stopped anywhere, with what it finds.

An operation yields where its effect so far is to be seen: between two yields is one step, and each step is all or
nothing. Knows no unions: it acts below any directory that holds what `fill` makes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import EIO
from pathlib import Path
from typing import NamedTuple

from pyunion.branch.syscalls import die_with_parent, fallocate
from tests.harness.files import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, write

USER = 1000  # an ordinary one, in no other group than that of this number
OLD_S = 1_000_000_000  # when everything in the lower branches was changed last: 2001
# A step whose data are in the kernel's cache: until the next step has succeeded they may be lost with the daemon.
CACHED = "cached"
# A step after which everything so far is on the disk, whatever happens to the machine.
SYNCED = "synced"
Steps = Iterator[str | None]
_LOOK = ("newfstatat", "fstat")  # for the attributes that the kernel wants to know after a change


class Operation(NamedTuple):
    name: str
    change: Callable[[Path], Steps]
    before: Callable[[Path], object] = lambda at: None  # made in the union first, so that upper has something
    options: tuple[str, ...] = ()
    times: bool = True  # False where the time of a file moves by itself: by the kernel's cache, or as its data arrive
    told: tuple[str, ...] = ()  # calls that come after the change: where one fails, that is told though it was made
    bare: bool = True  # works without the extension, too
    setid: bool = False  # it takes setuid and setgid, perhaps before it fails: no change of data leaves them
    indexed: bool = False  # its files are found by the index, which those do not read who take upper as a layer


def fill(upper_one: Path, other: Path) -> None:
    """Two lower branches: files, links, directories in one of them and in both, all of them old."""
    for name in ("f", "g", "d/a", "d/sub/b", "both/x", "many/1", "many/2", "exec"):
        write(upper_one / name, f"lower {name}\n" * 20)
    for name in ("both/y", "both/deep/z", "below/only", "d/sub/c"):
        write(other / name, f"lowest {name}\n" * 20)
    (upper_one / "exec").chmod(0o6755)
    write(upper_one / "setid", "of a user's\n" * 20)
    os.chown(upper_one / "setid", USER, 7)
    (upper_one / "setid").chmod(0o6777)
    os.setxattr(upper_one / "f", "user.kind", b"text")
    os.setxattr(upper_one / "f", "trusted.kind", b"text")
    with (upper_one / "sparse").open("wb") as file:
        file.seek(1 << 16)
        file.write(b"end")
    (upper_one / "empty").mkdir()
    (upper_one / "gone").mkdir()
    (upper_one / "s").symlink_to("f")
    os.mkfifo(upper_one / "p")
    write(upper_one / "one", "three names\n")
    os.link(upper_one / "one", upper_one / "two")
    os.link(upper_one / "one", upper_one / "d/three")
    (upper_one / "shared").mkdir()
    os.chown(upper_one / "shared", 0, 7)
    (upper_one / "shared").chmod(0o2775)
    write(upper_one / "shared/x", "x")
    for branch in (upper_one, other):
        for number, path in enumerate(sorted(branch.rglob("*"))):
            os.utime(path, ns=(OLD_S * 10**9, (OLD_S + number) * 10**9 + 7), follow_symlinks=False)
        os.utime(branch, (OLD_S, OLD_S))


def _once(call: Callable[[Path], object]) -> Callable[[Path], Steps]:
    """An operation of one step. Without the extension the daemon's timer interrupts what waits for its supervisor, and
    the call says EINTR, which no call on a disk would; then it is made again."""

    def change(at: Path) -> Steps:
        while True:
            with suppress(InterruptedError):
                call(at)
                break
        yield None

    return change


def _written(
    name: str, flags: int, data: bytes, sync: Callable[[int], None] = os.fsync
) -> Callable[[Path], Steps]:
    def change(at: Path) -> Steps:
        fd = os.open(at / name, flags, 0o640)
        try:
            yield None
            os.write(fd, data)
            yield CACHED
            sync(fd)
            yield SYNCED
        finally:
            os.close(fd)

    return change


def _mapped(at: Path) -> Steps:
    fd = os.open(at / "f", os.O_RDWR)
    try:
        yield None
        error = _errno_of(lambda: _write_by_mapping(fd))
        if error:
            raise OSError(error, os.strerror(error))
        yield SYNCED
    finally:
        os.close(fd)


def _write_by_mapping(fd: int) -> None:
    with mmap.mmap(fd, 4) as memory:
        memory[:4] = b"more"
        memory.flush()


def _errno_of(call: Callable[[], None]) -> int:
    """Of a call that gets a process of its own: it may end in a signal (memory that cannot be read), or would keep this
    process from answering the daemon (Python's lock is held over msync(2))."""
    child = os.fork()
    if child == 0:
        status = EIO
        try:
            die_with_parent()
            call()
            status = 0
        except OSError as error:
            status = error.errno or EIO
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return EIO if status < 0 else status


def _by_user(call: Callable[[Path], object], kind: str | None = None) -> Callable[[Path], Steps]:
    """An operation of one step by a process of an ordinary user's."""

    def change(at: Path) -> Steps:
        def as_user() -> None:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            call(at)

        error = _errno_of(as_user)
        if error:
            raise OSError(error, os.strerror(error))
        yield kind

    return change


def _with_setid(flags: int, call: Callable[[int], object] = lambda fd: None) -> Callable[[Path], object]:
    def on_descriptor(at: Path) -> None:
        fd = os.open(at / "setid", flags)
        try:
            call(fd)
        finally:
            os.close(fd)

    return on_descriptor


def _copied_setid(at: Path) -> None:
    os.utime(at / "setid", (OLD_S + 500, OLD_S + 501))


def _forbidden(at: Path) -> None:
    fd = os.open(at / "f", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SETFLAGS, struct.pack("=I", _IMMUTABLE | _NOATIME))
    finally:
        os.close(fd)


def _set_acl(acl: bytes) -> Callable[[Path], object]:
    return lambda at: os.setxattr(at / "setid", "system.posix_acl_access", acl)


def _written_through(at: Path) -> Steps:
    fd = os.open(at / "f", os.O_WRONLY | os.O_DSYNC)
    try:
        yield None
        os.write(fd, b"more")
        yield SYNCED
    finally:
        os.close(fd)


def _nameless(at: Path) -> Steps:
    fds = []
    try:
        fds.append(os.open(at / "d", os.O_RDONLY | os.O_DIRECTORY))
        fds.append(os.open(at / "d", os.O_TMPFILE | os.O_RDWR, 0o640))
        os.write(fds[1], b"nameless")
        os.fsync(fds[1])
        os.link(f"/proc/self/fd/{fds[1]}", "named", dst_dir_fd=fds[0], follow_symlinks=True)  # so it is linkat(2)
        yield None
    finally:
        for fd in fds:
            os.close(fd)


def _metacopy(flags: int) -> Callable[[Path], Steps]:
    def change(at: Path) -> Steps:
        (at / "f").chmod(0o600)
        yield None
        yield from _written("f", os.O_WRONLY | flags, b"more", os.fdatasync)(at)

    return change


def _moved_metacopy(at: Path) -> Steps:
    os.rename(at / "f", at / "d/moved")
    yield None
    os.truncate(at / "d/moved", 9)
    yield None


def _move_twice(at: Path) -> Steps:
    os.rename(at / "both", at / "d/one")
    yield None
    os.rename(at / "d/one", at / "two-names")
    yield None


def _remove_tree(at: Path) -> Steps:
    for name in ("both/deep/z", "both/x", "both/y"):
        (at / name).unlink()
        yield None
    for name in ("both/deep", "both"):
        (at / name).rmdir()
        yield None


def _append(name: str) -> Callable[[Path], Steps]:
    return _written(name, os.O_WRONLY | os.O_APPEND, b"more")


def _copied(name: str) -> Callable[[Path], object]:
    return lambda at: os.chmod(at / name, 0o604)


def _new(name: str) -> Callable[[Path], object]:
    return lambda at: write(at / name, "new")


def _new_directory(at: Path) -> None:
    (at / "new").mkdir()
    write(at / "new/x", "x")


def _both(*calls: Callable[[Path], object]) -> Callable[[Path], object]:
    def call(at: Path) -> None:
        for one in calls:
            one(at)

    return call


def _without(name: str) -> Callable[[Path], object]:
    return lambda at: (at / name).unlink()


def _emptied(name: str) -> Callable[[Path], object]:
    def call(at: Path) -> None:
        for path in (at / name).iterdir():
            path.unlink()

    return call


def _rename(old: str, new: str, flags: int = 0) -> Callable[[Path], Steps]:
    return _once(lambda at: renameat2(at / old, at / new, flags))


_SETFLAGS, _IMMUTABLE, _NOATIME = 0x40086602, 0x10, 0x80  # FS_IOC_SETFLAGS and flags, in linux/fs.h
# u::rwx, u:2000:rw-, g::r-x, m::rwx, o::---
_ACL = bytes.fromhex("0200000001000700ffffffff02000600d007000004000500ffffffff10000700ffffffff20000000ffffffff")
_OTHER_ACL = _ACL.replace(b"\xd0\x07", b"\xd1\x07")
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_METACOPY = ("metacopy=on",)

_ON_LINKS = [
    Operation("append to one of three names", _append("two")),
    Operation("chmod one of three names", _once(lambda at: (at / "d/three").chmod(0o600)), told=_LOOK),
    Operation("unlink one of three names", _once(lambda at: (at / "two").unlink())),
    Operation("unlink one of three names of a copy", _once(lambda at: (at / "two").unlink()), _copied("one")),
    Operation("unlink the last of three names", _once(lambda at: (at / "d/three").unlink()),
              _both(*(_without(name) for name in ("one", "two")))),
    Operation("rename one of three names", _rename("one", "d/moved")),
    Operation("rename over one of three names", _rename("f", "two")),
    Operation("link one of three names", _once(lambda at: os.link(at / "one", at / "four"))),
]  # fmt: skip
_ON_SETID = [
    Operation(f"{name}, {of}", _by_user(call, CACHED), before, options, times=False, told=_LOOK, setid=True, bare=bare)
    for of, before, options in (
        ("lower", lambda at: None, ()),
        ("a copy", _copied_setid, ()),
        ("a metadata-only copy", _copied_setid, _METACOPY),
    )
    for name, call, bare in (
        ("truncate a set-id file", lambda at: os.truncate(at / "setid", 10), True),
        ("lengthen a set-id file", lambda at: os.truncate(at / "setid", 1000), True),
        ("truncate an open set-id file", _with_setid(os.O_WRONLY, lambda fd: os.ftruncate(fd, 10)), True),
        ("open a set-id file with O_TRUNC", _with_setid(os.O_WRONLY | os.O_TRUNC), True),
        ("open a set-id file to read with O_TRUNC", _with_setid(os.O_RDONLY | os.O_TRUNC), True),
        ("write to a set-id file", _with_setid(os.O_WRONLY, lambda fd: os.write(fd, b"more")), True),
        ("allocate in a set-id file", _with_setid(os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 1000)), False),
    )
]
OPERATIONS = [
    Operation("create", _written("d/new", _CREATE, b"data"), told=_LOOK),
    Operation("create in the root", _written("new", _CREATE, b"data"), told=_LOOK),
    Operation("create over a whiteout", _written("d/a", _CREATE, b"data"), lambda at: (at / "d/a").unlink(),
              told=_LOOK),
    Operation(
        "create over a whiteout, inheriting a group",
        _written("shared/x", _CREATE, b"data"),
        lambda at: (at / "shared/x").unlink(),
        told=_LOOK,
    ),
    Operation("mkdir", _once(lambda at: (at / "d/new").mkdir())),
    Operation("mkdir over a whiteout", _once(lambda at: (at / "gone").mkdir()), lambda at: (at / "gone").rmdir()),
    Operation("mknod", _once(lambda at: os.mkfifo(at / "d/new"))),
    Operation("symlink", _once(lambda at: (at / "d/new").symlink_to("a"))),
    Operation("symlink over a whiteout", _once(lambda at: (at / "g").symlink_to("a")), lambda at: (at / "g").unlink()),
    Operation("O_TMPFILE and link", _nameless, bare=False),
    Operation("write and fsync", _append("new"), _new("new")),
    Operation("append to a lower file", _append("d/sub/b")),
    Operation("append to a lower file, by requests", _append("d/sub/b"), options=("passthrough=off",), times=False),
    Operation("append to a setuid file", _append("exec")),
    Operation("write into a lower file", _written("f", os.O_WRONLY, b"more", os.fdatasync)),
    Operation("write into a lower file, by requests", _written("f", os.O_WRONLY, b"more", os.fdatasync),
              options=("passthrough=off",), times=False),
    Operation("write into a lower file with O_DSYNC", _written_through, times=False),
    Operation("write into a lower file by a mapping", _mapped, times=False),
    Operation("open with O_TRUNC", _written("f", os.O_WRONLY | os.O_TRUNC, b"short"), told=_LOOK),
    Operation("truncate", _once(lambda at: os.truncate(at / "f", 10)), told=_LOOK),
    Operation("truncate a sparse file", _once(lambda at: os.truncate(at / "sparse", 5000)), told=_LOOK),
    Operation("chmod", _once(lambda at: (at / "d/a").chmod(0o600)), told=_LOOK),
    Operation("chmod of a directory", _once(lambda at: (at / "both/deep").chmod(0o700)), told=_LOOK),
    Operation("chown", _once(lambda at: os.chown(at / "f", 5, 6)), told=_LOOK),
    Operation("chown of a symlink", _once(lambda at: os.chown(at / "s", 5, 6, follow_symlinks=False)), told=_LOOK),
    Operation("utime", _once(lambda at: os.utime(at / "p", (OLD_S + 500, OLD_S + 501))), told=_LOOK),
    Operation("setxattr", _once(lambda at: os.setxattr(at / "f", "trusted.k", b"v"))),
    Operation("removexattr", _once(lambda at: os.removexattr(at / "f", "user.kind"))),
    Operation("rename a lower file", _rename("f", "d/moved")),
    Operation("rename a new file", _rename("new", "d/moved"), _new("new")),
    Operation("rename over a lower file", _rename("f", "g")),
    Operation("rename a new file over a copy", _rename("new", "d/a"), _both(_new("new"), _copied("d/a"))),
    Operation("rename over a whiteout", _rename("f", "g"), lambda at: (at / "g").unlink()),
    Operation("rename without replacing", _rename("f", "d/moved", RENAME_NOREPLACE)),
    Operation("rename a lower directory", _rename("d", "dd")),
    Operation("rename a merged directory", _rename("both", "d/both")),
    Operation("rename a moved directory", _move_twice),
    Operation("rename over an empty lower directory", _rename("both", "empty")),
    Operation("rename over an emptied directory", _rename("d", "many"), _emptied("many")),
    Operation("rename a directory over a whiteout", _rename("d", "gone"), lambda at: (at / "gone").rmdir()),
    Operation("rename a new directory over a whiteout", _rename("new", "gone"),
              _both(_new_directory, lambda at: (at / "gone").rmdir())),
    Operation("exchange files", _rename("f", "d/a", RENAME_EXCHANGE)),
    Operation("exchange directories", _rename("d/sub", "both", RENAME_EXCHANGE)),
    Operation("exchange a file and a directory", _rename("new", "both", RENAME_EXCHANGE), _new("new")),
    Operation("unlink a new file", _once(lambda at: (at / "d/new").unlink()), _new("d/new")),
    Operation("unlink a lower file", _once(lambda at: (at / "d/sub/b").unlink())),
    Operation("unlink a copy", _once(lambda at: (at / "d/a").unlink()), _copied("d/a")),
    Operation("rmdir of a new directory", _once(lambda at: (at / "new").rmdir()), lambda at: (at / "new").mkdir()),
    Operation("rmdir of a lower directory", _once(lambda at: (at / "empty").rmdir())),
    Operation("rmdir of an emptied directory", _once(lambda at: (at / "many").rmdir()), _emptied("many")),
    Operation("remove a tree", _remove_tree),
    Operation("link a lower file", _once(lambda at: os.link(at / "f", at / "d/linked"))),
    Operation("link a new file", _once(lambda at: os.link(at / "new", at / "d/linked")), _new("new")),
    Operation("link over a whiteout", _once(lambda at: os.link(at / "f", at / "g")), lambda at: (at / "g").unlink()),
    Operation("metadata alone, then data", _metacopy(os.O_APPEND), options=_METACOPY, times=False, told=_LOOK),
    Operation("metadata alone, then other data", _metacopy(0), options=_METACOPY, times=False, told=_LOOK),
    Operation("truncate a moved metadata-only copy", _moved_metacopy, _copied("f"), _METACOPY, times=False, told=_LOOK),
    Operation("truncate a metadata-only copy", _once(lambda at: os.truncate(at / "f", 9)), _copied("f"), _METACOPY,
              times=False, told=_LOOK),
    Operation("open a metadata-only copy with O_TRUNC", _written("f", os.O_WRONLY | os.O_TRUNC, b"short"), _copied("f"),
              _METACOPY, times=False, told=_LOOK),
    Operation("chmod with metacopy", _once(lambda at: (at / "d/a").chmod(0o600)), options=_METACOPY, times=False,
              told=_LOOK),
    *_ON_SETID,
    Operation("chown of a set-id file", _once(lambda at: os.chown(at / "setid", 5, 6)), told=_LOOK),
    Operation("chgrp of a set-id file", _once(lambda at: os.chown(at / "setid", -1, 6)), _copied_setid, told=_LOOK),
    Operation("set an ACL on a set-id file", _by_user(_set_acl(_ACL)), told=_LOOK, setid=True),
    Operation("set another ACL on a set-id file", _by_user(_set_acl(_ACL)), _set_acl(_OTHER_ACL), told=_LOOK,
              setid=True),
    Operation("forbid changes of a file", _once(_forbidden), bare=False),
    *(operation._replace(indexed=True) for operation in _ON_LINKS),
]  # fmt: skip
