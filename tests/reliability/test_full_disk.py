"""A real file system that is full, in blocks and in inodes: it can be emptied through the mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.files import outcome, run, tree, write
from tests.harness.union import Union


@pytest.fixture(params=["ext4", "tmpfs"])
def small(union: Union, request: pytest.FixtureRequest) -> Iterator[Union]:
    """A union whose upper is on a small file system of its own."""
    home = union.base / "home"
    home.mkdir()
    if request.param == "ext4":
        image = union.base / "image"
        run("truncate", "-s", "4M", image)
        run("mkfs.ext4", "-q", "-N", "64", "-m", "0", image)
        run("mount", "-o", "loop", image, home)
    else:
        run("mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=64", "tmpfs", home)
    try:
        union.top, union.work = home / "upper", home / "work"
        union.top.mkdir()
        union.work.mkdir()
        yield union
    finally:
        try:
            union.clean_up()
        finally:
            run("umount", home)


def fill(at: Path, data: bytes) -> int:
    """Make files until there is no room; how many."""
    made = 0
    while outcome(_make, at / f"new{made}", data) == "OK":
        made += 1
    return made


def _make(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_full_disk_can_be_emptied_through_the_mount(small: Union) -> None:
    lower = [f"d/{number}" for number in range(8)]
    for name in lower:
        write(small.low / name, "text")
    small.mount()
    at = small.at
    assert fill(at, b"x" * (256 << 10)) > 3
    fill(at, b"")
    assert outcome(_make, at / "more", b"") == "ENOSPC"
    for name in lower:  # it may be too full even for a whiteout; then nothing happens
        said = outcome(os.unlink, at / name)
        assert (said, (at / name).exists()) in (("OK", False), ("ENOSPC", True))
    for path in sorted(at.glob("new*")):
        assert outcome(os.unlink, path) == "OK"
    (at / "more").unlink(missing_ok=True)
    for name in lower:
        assert outcome(os.unlink, at / name) in ("OK", "ENOENT")
    assert outcome(os.rmdir, at / "d") == "OK"
    assert tree(at) == []
    assert write(at / "room", "again").read_text() == "again"
