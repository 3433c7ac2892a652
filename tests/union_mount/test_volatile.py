"""`-o volatile`: nothing is synced, and a mark in the work directory says so to whoever comes next."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.files import outcome, run, tree, write
from tests.harness.mounts import KernelMount, Layers, MountRefused, PyunionMount, unmount
from tests.harness.union import Union

_MARK = "work/incompat/volatile"
_SIZE = 4 << 20


def test_the_mark_is_there_from_the_start_and_stops_every_later_mount(union: Union) -> None:
    union.mount("volatile")
    assert stat.S_ISREG((union.work / _MARK / "dirty").stat().st_mode)
    write(union.at / "f", "kept")
    union.unmount()
    assert [path for path in tree(union.work) if "incompat" in path] == [
        "work/incompat/", f"{_MARK}/", f"{_MARK}/dirty"
    ]  # fmt: skip
    for option in ("rw", "volatile", "ro"):
        with pytest.raises(MountRefused):
            union.mount(option)
    run("rm", "-r", union.work / _MARK)
    union.mount()
    assert (union.at / "f").read_text() == "kept"
    assert not (union.work / "work/incompat").exists()


def test_the_other_implementation_heeds_the_mark(union: Union) -> None:
    union.mount("volatile")
    union.unmount()
    other = (KernelMount if union.kind == "pyunion" else PyunionMount)(union.at)
    with pytest.raises(MountRefused):
        other.start(Layers([union.low], union.top, union.work))


def test_a_mark_that_is_not_known_stops_a_mount_as_well(union: Union) -> None:
    (union.work / "work/incompat/frobnicate").mkdir(parents=True)
    with pytest.raises(MountRefused):
        union.mount()
    assert (union.work / "work/incompat/frobnicate").is_dir()
    run("rmdir", union.work / "work/incompat/frobnicate")
    union.mount()


def test_fsync_off_leaves_no_mark(pyunion: Union) -> None:
    """The option of fuse-overlayfs, which tools give to every mount of the same upper."""
    pyunion.mount("fsync=0")
    assert not (pyunion.work / "work/incompat").exists()
    pyunion.remount()


_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q"),
}
_MOUNT = {"ext4": "loop", "xfs": "loop,nouuid"}  # the crashed one has the UUID of the other


@pytest.fixture(params=_MAKE)
def disk(request: pytest.FixtureRequest, union: Union) -> Iterator[Path]:
    """Upper and work on a file system of their own: the path of its image, which holds what has reached the disk."""
    image, point = union.base / f"disk.{request.param}", union.base / "disk"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    run(*_MAKE[request.param], image)
    point.mkdir()
    run("mount", "-o", "loop", image, point)
    union.top, union.work = point / "upper", point / "work"
    union.top.mkdir()
    union.work.mkdir()
    run("sync", "-f", point)
    yield image
    union.clean_up()
    unmount(point)


def after_a_crash(union: Union, image: Path, name: str) -> bytes | None:
    """What upper holds under a name on a machine that loses power now."""
    crashed, at = union.base / f"crashed{image.suffix}", union.base / "crashed"
    run("cp", "--sparse=always", image, crashed)
    at.mkdir()
    run("mount", "-o", _MOUNT[image.suffix[1:]], crashed, at)
    try:
        path = at / "upper" / name
        return path.read_bytes() if path.exists() else None
    finally:
        unmount(at)


@pytest.mark.parametrize("option", ["volatile", "rw"])
def test_what_was_synced_survives_a_crash_unless_volatile(union: Union, disk: Path, option: str) -> None:
    content = os.urandom(_SIZE)
    union.mount(option)
    with (union.at / "new").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        assert (after_a_crash(union, disk, "new") == content) is (option == "rw")


@pytest.mark.parametrize("option", ["volatile", "rw"])
def test_a_copy_that_survives_a_crash_is_whole_unless_volatile(union: Union, disk: Path, option: str) -> None:
    """Its data are on the disk before its name can be."""
    content = os.urandom(_SIZE)
    (union.low / "low").write_bytes(content)
    union.mount(option)
    (union.at / "low").chmod(0o600)
    with (union.at / "other").open("wb") as other:
        os.fsync(other.fileno())  # the journal takes the name of the copy along, and not its data
    assert (after_a_crash(union, disk, "low") == content) is (option == "rw")


@pytest.fixture
def fragile(union: Union) -> Iterator[Callable[[], None]]:
    """Upper and work on a disk that can be let fail, from then on for all that is new.

    Its image grows with what is written, on a file system that has no room for it any more. It has no journal, which
    would take the whole file system down with the first error.
    """
    room, point = union.base / "room", union.base / "disk"
    room.mkdir()
    point.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=24m", "none", room)
    with (room / "disk.ext4").open("wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", room / "disk.ext4")
    run("mount", "-o", "loop", room / "disk.ext4", point)
    union.top, union.work = point / "upper", point / "work"
    union.top.mkdir()
    union.work.mkdir()
    union.compare_with_kernel = False  # what is lost cannot be read

    def fail() -> None:
        run("sync", "-f", point)
        assert "No space left" in run("dd", "if=/dev/zero", f"of={room}/full", "bs=1M", check=False)

    yield fail
    if union.kind == "pyunion":
        union.daemon.expect_complaints = True
    union.clean_up()
    unmount(point)
    unmount(room)


def lose(union: Union, path: Path) -> None:
    """Write what does not reach the disk, and let the kernel find out."""
    path.write_bytes(os.urandom(_SIZE))
    assert "No space left" in run("sync", "-f", union.top, check=False)


def fsync(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return outcome(os.fsync, fd)
    finally:
        os.close(fd)


def test_what_is_lost_is_told_by_fsync(union: Union, fragile: Callable[[], None]) -> None:
    """Nothing is synced; but from the first loss that is found on every fsync says so, of other files too."""
    write(union.low / "lower")
    union.mount("volatile")
    write(union.at / "other")
    fragile()
    with (union.at / "f").open("wb") as file:
        assert outcome(os.fsync, file.fileno()) == "OK"
        lose(union, union.at / "f")
        for _ in range(2):
            assert outcome(os.fsync, file.fileno()) == "ENOSPC"
    for path in (union.at / "f", union.at / "other", union.at / "lower", union.at):
        assert fsync(path) == "ENOSPC"


def test_what_was_lost_before_a_file_was_opened_is_told(union: Union, fragile: Callable[[], None]) -> None:
    union.mount("volatile")
    fragile()
    path = union.at / "f"
    path.write_bytes(os.urandom(_SIZE))
    assert fsync(path) == "OK"
    assert "No space left" in run("sync", "-f", union.top, check=False)
    assert fsync(path) == "ENOSPC"


def test_what_is_lost_of_one_file_is_told_by_fsync_of_another(
    union: Union, fragile: Callable[[], None], request: pytest.FixtureRequest
) -> None:
    if union.kind == "pyunion":
        reason = "only syncfs(2) tells of all files of a file system, and it would sync them"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    union.mount("volatile")
    write(union.at / "other")
    fragile()
    lose(union, union.at / "f")
    assert fsync(union.at / "other") == "ENOSPC"
