"""On which file systems a copy's data need only be written before its name is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyunion.branch.ordering import keeps_order
from tests.harness.filesystems import loop_mounted, mounted_at

KINDS = {"ext4": True, "xfs": True, "btrfs": False, "ext4 without a journal": False, "tmpfs": False}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "tmpfs":
        with mounted_at(tmp_path / "disk", "mount", "-t", "tmpfs", "none", tmp_path / "disk") as at:
            yield at
    else:
        with loop_mounted(request.param, tmp_path / "disk") as at:
            yield at


@pytest.mark.parametrize(("place", "kept"), KINDS.items(), indirect=["place"])
def test_order_is_kept_by_journals_that_hold_extents_before_a_write_ends(place: Path, kept: bool) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        assert keeps_order(fd) is kept
    finally:
        os.close(fd)


def test_older_kernels_are_not_trusted_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CentOS 8's leaves out pages that somebody else is writing."""
    with loop_mounted("xfs", tmp_path / "disk") as at:
        fd = os.open(at, os.O_RDONLY)
        try:
            now = os.uname()
            old = os.uname_result((now.sysname, now.nodename, "4.18.0-553.el8.x86_64", now.version, now.machine))
            monkeypatch.setattr(os, "uname", lambda: old)
            assert not keeps_order(fd)
        finally:
            os.close(fd)
