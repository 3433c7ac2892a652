"""A lower branch's descriptor admits no change, whichever way the kernel offers to get it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyunion.branch import readonly, syscalls
from pyunion.errors import ExitCode, PyunionError


def not_there(path: bytes) -> int:
    raise OSError(errno.ENOSYS, "no such system call", path)


@pytest.fixture(params=["clone", "bind"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 5.12 and later, and before."""
    if request.param == "bind":
        monkeypatch.setattr(syscalls, "open_readonly_clone", not_there)


CHANGES: dict[str, Callable[[int], object]] = {
    "create": lambda fd: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd),
    "open for writing": lambda fd: os.open("f", os.O_WRONLY, dir_fd=fd),
    "chmod": lambda fd: os.chmod("f", 0o777, dir_fd=fd),
    "chmod by /proc": lambda fd: os.chmod(f"/proc/self/fd/{fd}/f", 0o777),
    "unlink": lambda fd: os.unlink("f", dir_fd=fd),
    "mkdir": lambda fd: os.mkdir("d", dir_fd=fd),
    "setxattr": lambda fd: os.setxattr(f"/proc/self/fd/{fd}/f", "user.x", b"1"),
    "utime": lambda fd: os.utime("f", (1, 1), dir_fd=fd),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_erofs(tmp_path: Path, change: Callable[[int], object]) -> None:
    (tmp_path / "f").write_text("lower")
    with ExitStack() as stack:
        (fd,) = readonly.open_readonly([bytes(tmp_path)], stack)
        with pytest.raises(OSError, match="Read-only file system"):
            change(fd)
        assert os.stat("f", dir_fd=fd).st_ino == (tmp_path / "f").stat().st_ino
        assert os.fstat(fd).st_dev == tmp_path.stat().st_dev
    assert (tmp_path / "f").read_text() == "lower"


@pytest.mark.usefixtures("way")
def test_many_branches_keep_their_order_and_no_descriptor_is_left(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.mkdir()
    before = sorted(os.listdir("/proc/self/fd"))
    with ExitStack() as stack:
        fds = readonly.open_readonly([bytes(path) for path in paths], stack)
        assert [os.fstat(fd).st_ino for fd in fds] == [path.stat().st_ino for path in paths]
        assert not any(os.get_inheritable(fd) for fd in fds)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("way")
def test_the_branch_that_is_missing_is_named(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(PyunionError, match="absent: No such file") as caught:
        readonly.open_readonly([bytes(tmp_path), bytes(tmp_path / "absent")], stack)
    assert caught.value.exit_code == ExitCode.BRANCH


def test_reading_leaves_no_trace_in_access_times(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.utime(tmp_path / "f", ns=(10**9, 2 * 10**9))
    with ExitStack() as stack:
        (dirfd,) = readonly.open_readonly([bytes(tmp_path)], stack)
        fd = os.open("f", os.O_RDONLY, dir_fd=dirfd)
        stack.callback(os.close, fd)
        assert os.read(fd, 1) == b"x"
    assert (tmp_path / "f").stat().st_atime_ns == 10**9
