"""Probing tells the truth about a file system, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyunion.branch import probe
from pyunion.errors import ExitCode, PyunionError
from tests.harness.mounts import KernelMount, Layers


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.fixture
def work_fd(scratch: Path) -> Iterator[int]:
    fd = _open(scratch)
    yield fd
    assert os.listdir(fd) == [], "the probe left something behind"
    os.close(fd)


def test_a_file_system_that_can_do_it_all(work_fd: int) -> None:
    features = probe.probe_upper(work_fd, want_userxattr=False)
    assert features.xattr_prefix == b"trusted.overlay."
    assert (features.whiteout_device, features.rename_exchange, features.rename_whiteout) == (True, True, True)
    assert features.reasons == ()


def test_user_xattrs_when_they_are_wanted(work_fd: int) -> None:
    assert probe.probe_upper(work_fd, want_userxattr=True).xattr_prefix == b"user.overlay."


def test_every_missing_feature_has_a_reason(work_fd: int) -> None:
    features = probe.probe_upper(work_fd, want_userxattr=False, full=True)
    missing = [features.reflink, features.o_tmpfile].count(False)
    assert len(features.reasons) == missing


@pytest.mark.usefixtures("_can_mount")
def test_overlayfs_allows_no_whiteouts_in_it(scratch: Path) -> None:
    for name in ("lower", "upper", "work", "union"):
        (scratch / name).mkdir()
    mount = KernelMount(scratch / "union")
    mount.start(Layers([scratch / "lower"], scratch / "upper", scratch / "work"))
    fd = _open(scratch / "union")
    features = probe.probe_upper(fd, want_userxattr=False)
    assert not features.whiteout_device
    assert not features.rename_whiteout
    assert features.rename_exchange
    assert [reason.partition(" (")[0] for reason in features.reasons] == [
        "whiteouts cannot be character devices, and have to be files with an xattr",
        "a rename cannot leave a whiteout behind, and takes two steps",
    ]
    assert os.listdir(fd) == []
    os.close(fd)
    mount.stop()


def test_a_directory_that_takes_nothing() -> None:
    fd = _open(Path("/proc"))
    with pytest.raises(PyunionError, match="nothing can be created in /proc: ") as caught:
        probe.probe_upper(fd, want_userxattr=False)
    assert caught.value.exit_code == ExitCode.WORK
    os.close(fd)


def test_looking(work_fd: int) -> None:
    assert probe.look(work_fd) == probe.LookFeatures(d_type=True, trusted_xattr=True, user_xattr=True)


def test_looking_where_there_are_no_xattrs() -> None:
    fd = _open(Path("/proc"))
    seen = probe.look(fd)
    os.close(fd)
    assert seen == probe.LookFeatures(d_type=True, trusted_xattr=False, user_xattr=False)
