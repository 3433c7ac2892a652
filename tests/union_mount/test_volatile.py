"""`-o volatile`: nothing is synced, and a mark in the work directory says so to whoever comes next."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.files import append, run, tree, write
from tests.harness.mounts import KernelMount, Layers, MountRefused, PyunionMount, unmount
from tests.harness.union import Union

_MARK = "work/incompat/volatile"
_SIZE = 4 << 20
_SECTOR = 512


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


@pytest.fixture
def disk(union: Union) -> Iterator[Path]:
    """Upper and work on a file system whose device counts what is written to it: its directory in /sys."""
    image, point = union.base / "disk.ext4", union.base / "disk"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    point.mkdir()
    run("mount", "-o", "loop", image, point)
    union.top, union.work = point / "upper", point / "work"
    union.top.mkdir()
    union.work.mkdir()
    device = point.stat().st_dev
    yield Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    union.clean_up()
    unmount(point)


def _written(disk: Path) -> int:
    """Bytes since the device was set up (block/stat.rst of the kernel's documentation)."""
    return int((disk / "stat").read_text().split()[6]) * _SECTOR


@pytest.mark.parametrize("option", ["volatile", "rw"])
def test_fsync_and_copy_up_wait_for_the_disk_unless_volatile(union: Union, disk: Path, option: str) -> None:
    (union.low / "low").write_bytes(os.urandom(_SIZE))
    union.mount(option)
    run("sync", "-f", union.top)
    before = _written(disk)
    append(union.at / "low", "+")
    after_copy_up = _written(disk)
    with (union.at / "new").open("wb") as file:
        file.write(os.urandom(_SIZE))
        file.flush()
        os.fsync(file.fileno())
    after_fsync = _written(disk)
    waited = (after_copy_up - before >= _SIZE, after_fsync - after_copy_up >= _SIZE)
    assert waited == ((False, False) if option == "volatile" else (True, True))
