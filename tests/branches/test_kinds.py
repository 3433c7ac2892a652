"""One list of real operations, whatever the branches are on, with the results of a plain directory.

Each is done on pyunion and on the kernel's overlayfs, and is there again after a remount; at the end the kernel shows
the same branches alike (Union.unmount).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from pyunion.branch.handles import UUID_QUESTIONS, ask_uuid
from tests.branches.lowers import KINDS, copy
from tests.branches.operations import carry_out, fill
from tests.harness.files import append, run, write
from tests.harness.filesystems import MAKE, loop_mounted, mounted_at
from tests.harness.mounts import KernelMount, Layers
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.union import Union

# What XFS shows of an ACL besides the ACL itself.
_OF_XFS = (b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT")
# The links of a lower file stay one by its file handle (docs/known-failures.md). overlayfs has none, and FUSE none that
# last.
_WITHOUT_HANDLES = ("bindfs", "overlayfs", "sshfs")


@pytest.fixture
def disk(scratch: Path) -> Iterator[Path]:
    """A file system that can be told from others by its UUID, which the machine's own disk need not have."""
    with loop_mounted("xfs", scratch / "disk") as at:
        yield at


@pytest.fixture(params=["pyunion", "kernel"])
def union(request: pytest.FixtureRequest, disk: Path, _can_mount: None) -> Iterator[Union]:
    """A union whose branches are on `disk`, if the test does not put them elsewhere."""
    yield from _union_on(disk, request.param)


@pytest.fixture
def pyunion(disk: Path, _can_mount: None) -> Iterator[Union]:
    yield from _union_on(disk, "pyunion")


def _union_on(disk: Path, kind: str) -> Iterator[Union]:
    (disk / "union").mkdir()
    made = Union(disk / "union", kind)
    made.compare_with_kernel = False  # done here with the index, which counts links
    put_above(made.low)
    yield made
    made.clean_up()


@pytest.fixture
def source(scratch: Path) -> Path:
    path = scratch / "source"
    path.mkdir()
    fill(path)
    return path


def put_above(branch: Path) -> None:
    """What an ordinary lower branch has above the one under test: directories that merge, a file that wins."""
    for name in ("read/many/7", "read/above"):
        write(branch / name, "of the branch above\n", mode=0o640)


def tree_of(top: Path) -> Snapshot:
    """All but times, and what XFS shows twice."""
    return {
        name: entry._replace(xattrs=tuple(xattr for xattr in entry.xattrs if xattr[0] not in _OF_XFS))
        for name, entry in snapshot(top, times=False).items()
    }


def assert_as_plain(union: Union, lower: Path, plain: Path, keeps_links: bool = True) -> None:
    """The operations have the results that they have on `plain`, a new directory of the machine's disk.

    The kernel keeps links with the index only, and with that it refuses an upper that it still has in any namespace.
    """
    leave_out = () if keeps_links and union.kind == "pyunion" else ("links",)
    plain.mkdir()
    copy(lower, plain)
    copy(union.low, plain)
    union.mount(lowers=[union.low, lower])
    assert carry_out(union.at, leave_out) == carry_out(plain, leave_out)
    assert_same(tree_of(union.at), tree_of(plain), "the results differ (union | plain directory)")
    union.remount()
    assert_same(tree_of(union.at), tree_of(plain), "after a remount (union | plain directory)")
    assert os.lstat(union.at / "times/kept").st_mtime_ns == os.lstat(plain / "times/kept").st_mtime_ns
    union.unmount()
    if union.kind == "pyunion":
        kernel = KernelMount(union.at)
        kernel.start(Layers([union.low, lower], union.top, union.work), ["index=on"])
        try:
            assert_same(tree_of(union.at), tree_of(plain), "taken over by the kernel (union | plain directory)")
        finally:
            kernel.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lower_branch_on(union: Union, source: Path, kind: str) -> None:
    with KINDS[kind](source, source.with_name(kind)) as lower:
        try:
            assert_as_plain(union, lower, source.with_name("plain"), kind not in _WITHOUT_HANDLES)
        finally:
            union.clean_up()


@pytest.mark.parametrize("lower_is", ["beside", "elsewhere"])
@pytest.mark.parametrize("kind", [*MAKE, "tmpfs"])
def test_an_upper_branch_on(union: Union, source: Path, kind: str, lower_is: str) -> None:
    """Beside upper the lower branch may share its blocks with a copy."""
    at = source.with_name(kind)
    with mounted_at(at, "mount", "-t", kind, kind, at) if kind == "tmpfs" else loop_mounted(kind, at):
        try:
            union.top, union.work, beside = at / "upper", at / "work", at / "lower"
            for path in (union.top, union.work, beside):
                path.mkdir()
            copy(source, beside)
            assert_as_plain(union, beside if lower_is == "beside" else source, source.with_name("plain"))
        finally:
            union.clean_up()


@pytest.mark.parametrize("kind", _WITHOUT_HANDLES)
def test_without_file_handles_links_part_and_no_change_is_lost(pyunion: Union, source: Path, kind: str) -> None:
    """Also when the branch is mounted anew, as a FUSE file system then gives its handles to other files."""
    names = ("one-outside", "one/file", "one/other", "two-outside", "two/file", "two/other")
    with KINDS[kind](source, source.with_name(kind)) as lower:
        try:
            pyunion.mount("index=on", lowers=[lower])
            for name in names:  # the other names of a file are known before one is changed
                assert (pyunion.at / "links" / name).read_text() == name[:3]
            append(pyunion.at / "links/one/file", "+")
            append(pyunion.at / "links/two/other", "+")
            pyunion.unmount()
        finally:
            pyunion.clean_up()
    source.with_name(f"{kind}.image").unlink(missing_ok=True)
    with KINDS[kind](source, source.with_name(f"{kind}-again")) as lower:
        try:
            pyunion.mount("index=on", lowers=[lower])
            for name in reversed(names):
                (pyunion.at / "links" / name).stat()
            texts = {name: (pyunion.at / "links" / name).read_text() for name in names}
            assert (texts["one/file"], texts["two/other"]) == ("one+", "two+")
            assert all(text in (name[:3], name[:3] + "+") for name, text in texts.items())
        finally:
            pyunion.clean_up()


@pytest.mark.parametrize("kind", MAKE)
def test_the_uuid_of_a_file_system_is_the_one_on_its_disk(scratch: Path, kind: str) -> None:
    """By whichever question the kernel answers; the kernel's overlayfs writes it into its marks."""
    with loop_mounted(kind, scratch / kind) as at:
        expected = UUID(run("blkid", "-s", "UUID", "-o", "value", scratch / f"{kind}.image").strip()).bytes
        fd = os.open(at, os.O_RDONLY)
        try:
            answers = {question: ask_uuid(fd, question) for question in UUID_QUESTIONS}
        finally:
            os.close(fd)
    assert set(answers.values()) - {None} == {expected}
    own = [question for question in UUID_QUESTIONS if kind in question.lower()]
    assert all(answers[question] == expected for question in own)


def test_two_subvolumes_are_one_file_system(pyunion: Union, source: Path) -> None:
    """They have two device numbers, and handles that are good for both."""
    with KINDS["btrfs_snapshot"](source, source.with_name("btrfs")) as lower:
        run("btrfs", "subvolume", "snapshot", "-r", lower, lower.with_name("second"))
        try:
            pyunion.mount("index=on", lowers=[lower, lower.with_name("second")])
            append(pyunion.at / "links/one/file", "+")
            assert (pyunion.at / "links/one-outside").read_text() == "one+"
        finally:
            pyunion.clean_up()
