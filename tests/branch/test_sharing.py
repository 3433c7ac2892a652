"""Copies that share their blocks: all the data, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyunion.branch import copyup
from pyunion.branch.copyup import Source, Terms
from tests.harness.filesystems import loop_mounted

_SIZE = 1 << 20


class Place:
    """A directory on XFS with a file in it, and how much room there is."""

    def __init__(self, at: Path, stack: ExitStack) -> None:
        self.at = at
        (at / "file").write_bytes(os.urandom(_SIZE))
        (at / "short").write_bytes(b"")
        os.truncate(at / "short", _SIZE // 2)
        self.directory, self.data = (os.open(path, os.O_RDONLY) for path in (at, at / "file"))
        for fd in (self.directory, self.data):
            stack.callback(os.close, fd)

    def used(self) -> int:
        os.sync()
        st = os.statvfs(self.at)
        return (st.f_blocks - st.f_bfree) * st.f_frsize


@pytest.fixture
def place(scratch: Path, _can_mount: None) -> Iterator[Place]:
    with loop_mounted("xfs", scratch / "xfs") as at, ExitStack() as stack:
        yield Place(at, stack)


def test_a_copy_shares_its_blocks(place: Place) -> None:
    before = place.used()
    assert copyup.stage_shared(place.directory, b"copy", Source(place.data, place.data, os.fstat(place.data)), Terms())
    assert (place.at / "copy").read_bytes() == (place.at / "file").read_bytes()
    assert place.used() - before < _SIZE // 2


def test_a_copy_has_no_more_data_than_the_file_that_it_is_of(place: Place) -> None:
    """As a metadata-only copy that somebody has made shorter than the file below with its data."""
    source = Source(place.data, place.data, (place.at / "short").stat())
    assert not copyup.stage_shared(place.directory, b"copy", source, Terms())
    assert not (place.at / "copy").exists()
    copyup.stage_file(place.directory, b"copy", source, _SIZE // 2, Terms())
    assert (place.at / "copy").read_bytes() == (place.at / "file").read_bytes()[: _SIZE // 2]
