"""A lower branch that does not answer, for a while or ever again: whoever needs it waits, and nobody else.

The branch is by FUSE, as sshfs would be, and answers nothing while it is told to hold.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.files import write
from tests.harness.held import Client, HeldBranch
from tests.harness.union import Union
from tests.operate.conftest import told

NEAR = 300  # names in another branch
MANY = 64  # files that are read at the same time
_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS in linux/fs.h


def _read(path: Path) -> str:
    return path.read_text()


def _mapped(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return data[:]


def _appended(path: Path) -> str:
    with path.open("a") as file:
        file.write(" more")
    return path.read_text()


def _read_beside(path: Path) -> bytes:
    with path.open("rb", buffering=0) as before:
        assert before.read() == b"far"
        _appended(path)
        return os.pread(before.fileno(), 20, 0)


def _truncated(path: Path) -> int:
    os.truncate(path, 2)
    return path.stat().st_size


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(fcntl.ioctl(fd, _GETFLAGS, bytes(4)))
    finally:
        os.close(fd)


def _copied(path: Path) -> bytes:
    with path.open("rb") as source, path.with_name("copy").open("wb+") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 3)
        return os.pread(target.fileno(), 10, 0)


def _hole(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE)
    finally:
        os.close(fd)


def _renamed(old: Path, new: Path) -> list[str]:
    old.rename(new)
    return sorted(path.name for path in old.parent.iterdir())


def _gone(call: Callable[[], object], path: Path) -> bool:
    call()
    return not os.path.lexists(path)


def _created(path: Path) -> str:
    path.write_text("new")
    return path.read_text()


def _made(path: Path) -> bool:
    path.mkdir()
    return path.is_dir()


def _changed_mode(path: Path) -> int:
    path.chmod(0o640)
    return path.stat().st_mode & 0o777


def _given_away(path: Path) -> int:
    os.lchown(path, 7, 7)
    return path.lstat().st_uid


def _with_xattr(path: Path) -> str:
    os.setxattr(path, "user.new", b"1")
    return path.read_text()


def _symlinked(path: Path) -> str:
    path.symlink_to("file")
    return path.read_text()


def _linked(path: Path) -> str:
    os.link(path, path.with_name("link"))
    return path.with_name("link").read_text()


# What a client does in a directory of the branch that nobody has looked at, and what that gives.
NEEDS_IT: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "stat": (lambda d: (d / "file").stat().st_size, 3),
    "stat of nothing": (lambda d: (d / "none").exists(), False),
    "list": (lambda d: sorted(os.listdir(d)), ["dir", "file", "symlink"]),
    "read": (lambda d: _read(d / "file"), "far"),
    "map": (lambda d: _mapped(d / "file"), b"far"),
    "readlink": (lambda d: os.readlink(d / "symlink"), "file"),
    "get xattr": (lambda d: os.getxattr(d / "file", "user.there"), b"yes"),
    "list xattrs": (lambda d: os.listxattr(d / "file"), ["user.there"]),
    "seek to a hole": (lambda d: _hole(d / "file"), 3),
    "chattr's flags": (lambda d: _flags(d / "file"), "ENOTTY"),
    "copy a range": (lambda d: _copied(d / "file"), b"far"),
    "append": (lambda d: _appended(d / "file"), "far more"),
    "append beside a reader": (lambda d: _read_beside(d / "file"), b"far more"),
    "truncate": (lambda d: _truncated(d / "file"), 2),
    "open with O_TRUNC": (lambda d: _created(d / "file"), "new"),
    "chmod": (lambda d: _changed_mode(d / "file"), 0o640),
    "chmod a directory": (lambda d: _changed_mode(d / "dir"), 0o640),
    "chown a symlink": (lambda d: _given_away(d / "symlink"), 7),
    "set xattr": (lambda d: _with_xattr(d / "file"), "far"),
    "create": (lambda d: _created(d / "new"), "new"),
    "mkdir": (lambda d: _made(d / "new"), True),
    "symlink": (lambda d: _symlinked(d / "new"), "far"),
    "link": (lambda d: _linked(d / "file"), "far"),
    "rename": (lambda d: _renamed(d / "file", d / "moved"), ["dir", "moved", "symlink"]),
    "rename a directory": (lambda d: _renamed(d / "dir", d / "moved"), ["file", "moved", "symlink"]),
    "rename over": (lambda d: _renamed(d / "symlink", d / "file"), ["dir", "file"]),
    "unlink": (lambda d: _gone((d / "file").unlink, d / "file"), True),
    "rmdir": (lambda d: _gone((d / "dir").rmdir, d / "dir"), True),
}


def _place(name: str) -> str:
    return name.replace(" ", "-").replace("'", "")


@pytest.fixture
def held(scratch: Path, _can_mount: None) -> Iterator[HeldBranch]:
    """To be named before `pyunion`, so that it is unmounted after that."""
    branch = HeldBranch(scratch / "held", scratch / "far")
    for name in NEEDS_IT:
        directory = branch.source / "far" / _place(name)
        file = write(directory / "file", "far")
        os.setxattr(file, "user.there", b"yes")
        (directory / "dir").mkdir()
        (directory / "symlink").symlink_to("file")
    for number in range(MANY):
        write(branch.source / f"far/many/{number}", "x" * 100_000)
    yield branch
    branch.stop()


@pytest.fixture(params=["extension", "bare"])
def far(held: HeldBranch, pyunion: Union, request: pytest.FixtureRequest) -> Iterator[Union]:
    """A union of it and another branch."""
    if request.param == "bare":
        request.getfixturevalue("bare")
    for number in range(NEAR):
        write(pyunion.low / f"near/{number}", "near")
    pyunion.mount(lowers=[pyunion.low, held.at])
    (pyunion.at / "mine").mkdir()
    yield pyunion
    held.go()


class Known:
    """Directories that are open, so that the kernel, once it knows them, does not forget them, whatever other programs
    make it forget."""

    def __init__(self, at: Path, names: Iterable[str]) -> None:
        self._opened = [os.open(at / name, os.O_PATH) for name in names]

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.pop())


@pytest.fixture(autouse=True)
def known(far: Union) -> Iterator[Known]:
    """The upper parts of the tree, so that no look-up there needs the branch."""
    known = Known(far.at, ("near", "mine", "far", "far/many", *(f"far/{_place(name)}" for name in NEEDS_IT)))
    yield known
    known.close()


class Others:
    """Those who do not need the branch, each time with names that are new to the kernel."""

    def __init__(self, union: Union) -> None:
        self._at = union.at
        self._names = (f"{number}" for number in range(NEAR))

    def require_answers(self) -> None:
        read, changed, moved = (self._at / "near" / next(self._names) for _ in range(3))
        new = self._at / "mine" / moved.name

        def call() -> list[object]:
            results = [_read(read), _appended(changed), _created(new), _gone(lambda: moved.rename(new), moved)]
            return [*results, len(os.listdir(self._at / "near")) > NEAR // 2]

        assert Client(call).await_result() == ["near", "near more", "new", True, True]


@pytest.mark.parametrize("name", NEEDS_IT)
def test_who_needs_it_waits_and_nobody_else(held: HeldBranch, far: Union, name: str) -> None:
    """At each of the requests that the branch gets for an operation."""
    call, result = NEEDS_IT[name]
    others = Others(far)
    directory = far.at / "far" / _place(name)
    held.hold()
    client = Client(lambda: call(directory))
    requests = 0
    while held.await_request(client):
        requests += 1
        others.require_answers()
        held.next()
    assert requests
    assert client.await_result() == result
    held.go()


def test_how_much_space_there_is_on_it(held: HeldBranch, far: Union, known: Known) -> None:
    """Which is asked of the topmost branch."""
    known.close()
    far.unmount()
    far.mount(lowers=[held.at, far.low], writable=False)
    near = Known(far.at, ["near"])
    held.hold()
    client = Client(lambda: os.statvfs(far.at).f_namemax)
    assert held.await_request()
    assert Client(lambda: _read(far.at / "near/0")).await_result() == "near"
    assert client.is_waiting()
    held.go()
    assert client.await_result() == 255
    near.close()


def test_the_status_names_it_and_answers_for_the_others(held: HeldBranch, far: Union) -> None:
    held.hold()
    for _ in range(3):
        states = {branch["path"]: branch["state"] for branch in told("status", far.at)["branches"]}
        assert states == {str(far.top): "ok", str(far.low): "ok", str(held.at): "does not answer"}
    held.go()
    assert {branch["state"] for branch in told("status", far.at)["branches"]} == {"ok"}


@pytest.mark.parametrize("far", ["extension"], indirect=True)
def test_as_many_as_ever_may_wait(held: HeldBranch, far: Union) -> None:
    """For look-ups, and for data that the kernel reads ahead."""
    files = [far.at / f"far/many/{number}" for number in range(MANY)]
    opened = [path.open("rb") for path in files[: MANY // 2]]
    held.hold()
    clients = [Client(lambda file=file: len(file.read())) for file in opened]  # type: ignore[misc]
    clients += [Client(lambda path=path: len(path.read_bytes())) for path in files[MANY // 2 :]]  # type: ignore[misc]
    for _ in range(40):  # so many threads wait for one branch, and all others for them
        assert held.await_request()
    Others(far).require_answers()
    held.go()
    assert [client.await_result() for client in clients] == [100_000] * MANY
    for file in opened:
        file.close()


@pytest.mark.parametrize("name", NEEDS_IT)
def test_a_killed_client_that_waits_for_it_holds_nobody_up(held: HeldBranch, far: Union, name: str) -> None:
    call, result = NEEDS_IT[name]
    directory = far.at / "far" / _place(name)
    held.hold()
    client = Client(lambda: call(directory))
    assert held.await_request()
    client.kill()
    Others(far).require_answers()
    held.go()
    client.await_end()
    client = Client(lambda: call(directory))
    assert client.await_result() in (result, "EEXIST", "ENOENT", False)


@pytest.mark.parametrize("name", NEEDS_IT)
def test_when_it_dies_those_who_wait_hear_so(held: HeldBranch, far: Union, known: Known, name: str) -> None:
    call, _ = NEEDS_IT[name]
    directory = far.at / "far" / _place(name)
    held.hold()
    client = Client(lambda: call(directory))
    assert held.await_request()
    held.die()
    assert client.await_result() in ("ENOTCONN", "ECONNABORTED", "EIO")
    Others(far).require_answers()
    sentences = [line for line in far.daemon.log().splitlines() if "the branch" in line]
    assert len(sentences) == 1
    assert str(held.at) in sentences[0]
    known.close()
    far.daemon.expect_complaints = True
    far.daemon.stop()
    far.forget()  # there is nothing to compare any more
