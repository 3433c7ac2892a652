"""Nothing is ever to be seen in upper with an owner or a mode that it does not have in the end: not for a moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from stat import S_IMODE, S_ISLNK
from typing import NamedTuple

import pytest

from tests.harness.files import is_whiteout
from trials.supervised import Supervised
from trials.union import Home

_USER, _GROUP, _UMASK = 1000, 1001, 0o027
_DEFAULT_ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000000ffffffff")  # u::rwx,g::r-x,o::---


class Seen(NamedTuple):
    """What somebody who looks into upper sees of a new object."""

    path: Path
    uid: int
    gid: int
    mode: int


class Observed(Supervised):
    """Before each system call on a branch somebody looks into upper."""

    def __init__(self, point: Path, upper: Path) -> None:
        super().__init__(point)
        self._upper = upper
        self.seen: set[Seen] = set()

    def look(self) -> set[Seen]:
        found = set()
        for path in self._upper.rglob("*"):
            if not is_whiteout(path):
                st = path.lstat()
                mode = 0 if S_ISLNK(st.st_mode) else S_IMODE(st.st_mode)
                found.add(Seen(path, st.st_uid, st.st_gid, mode))
        return found

    def _decide(self, name: str) -> int | None:
        if self._counts:
            self.seen |= self.look()
        return super()._decide(name)


def _as_user(call: Callable[[], object]) -> None:
    """In a process of an ordinary user's."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(_GROUP, _GROUP, _GROUP)
            os.setresuid(_USER, _USER, _USER)
            os.umask(_UMASK)
            call()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _open_nameless(place: Path) -> None:
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o666)
    numbers = os.open("/proc/self/fd", os.O_RDONLY)
    os.link(str(fd), place / "linked", src_dir_fd=numbers, follow_symlinks=True)


MAKE: dict[str, Callable[[Path], object]] = {
    "file": lambda place: os.close(os.open(place / "new", os.O_CREAT | os.O_WRONLY, 0o666)),
    "setuid file": lambda place: os.close(os.open(place / "new", os.O_CREAT | os.O_WRONLY, 0o4777)),
    "directory": lambda place: os.mkdir(place / "new", 0o777),
    "fifo": lambda place: os.mkfifo(place / "new", 0o666),
    "symlink": lambda place: os.symlink("target", place / "new"),
    "nameless file": _open_nameless,
    "file over a whiteout": lambda place: os.close(os.open(place / "gone", os.O_CREAT | os.O_WRONLY, 0o666)),
    "directory over a whiteout": lambda place: os.mkdir(place / "gone", 0o777),
    "copy of a secret": lambda place: os.close(os.open(place / "secret", os.O_APPEND | os.O_WRONLY)),
    "copy of a setuid program": lambda place: os.utime(place / "program"),
    "copy with an ACL": lambda place: os.utime(place / "shared"),
}


@pytest.fixture(scope="module")
def prepared(home: Home) -> Home:
    for name, mode in (("plain", 0o777), ("setgid", 0o2777), ("acl", 0o777)):
        place = home.lowers[0] / "places" / name
        place.mkdir(parents=True)
        for file, file_mode in (("secret", 0o600), ("program", 0o4711), ("shared", 0o640), ("gone", 0o644)):
            (place / file).write_text("lower")
            os.chown(place / file, _USER, _GROUP)
            (place / file).chmod(file_mode)
        os.chown(place, 0, 7)
        place.chmod(mode)
    acl = bytes.fromhex("0200000001000600ffffffff02000600d007000004000400ffffffff10000600ffffffff20000000ffffffff")
    for place in (home.lowers[0] / "places").iterdir():
        os.setxattr(place / "shared", "system.posix_acl_access", acl)  # u::rw-,u:2000:rw-,g::r--,m::rw-,o::---
    os.setxattr(home.lowers[0] / "places/acl", "system.posix_acl_default", _DEFAULT_ACL)
    home.base.chmod(0o755)
    return home


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("place", ["plain", "setgid", "acl"])
def test_what_is_made_has_its_owner_and_mode_from_the_first_moment_on(prepared: Home, place: str, name: str) -> None:
    prepared.empty()
    daemon = Observed(prepared.at, prepared.upper)
    with prepared.mounted(daemon, []) as at:
        if "whiteout" in name:
            (at / "places" / place / "gone").unlink()
        os.utime(at / "places" / place)  # a copy of the directory is there
        daemon.arm(0, lambda: 0, answers=True)
        _as_user(lambda: MAKE[name](at / "places" / place))
        daemon.disarm()
        last = {seen.path: seen for seen in daemon.look()}
    made = {path for path in last if path.parent.name == place}
    assert made
    assert made <= {seen.path for seen in daemon.seen}
    for seen in daemon.seen:
        end = last[seen.path]
        assert (seen.uid, seen.gid) == (end.uid, end.gid), f"{seen}, and in the end {end}"
        assert not seen.mode & ~end.mode, f"{seen}, and in the end {end}"
