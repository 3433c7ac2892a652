"""What the daemon keeps out of: lower branches, all that is outside the branches, other unions' uppers."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.harness.files import as_user, outcome, run, tree, write
from tests.harness.mounts import Layers, MountRefused, PyunionMount
from tests.harness.union import Union


def test_a_write_beside_an_open_reader_lands_in_upper(union: Union) -> None:
    """A daemon that shares one backing file between opens would write into the lower branch."""
    write(union.low / "f", "old")
    run("cp", "/bin/true", union.low / "program")
    union.mount()
    for name in ("f", "program"):
        reader = os.open(union.at / name, os.O_RDONLY)
        writer = os.open(union.at / name, os.O_RDWR)
        os.pread(reader, 1, 0)
        os.pwrite(writer, b"NEW", 0)
        os.fsync(writer)
        os.close(reader)
        os.close(writer)
    union.unmount()  # compares the lower branches
    assert (union.low / "f").read_text() == "old"
    assert (union.top / "f").read_text() == "NEW"


def test_file_flags_never_reach_a_lower_branch(union: Union) -> None:
    write(union.low / "f")
    union.mount()
    run("chattr", "+i", union.at / "f", check=False)
    assert "i" not in run("lsattr", union.low / "f").split()[0]
    run("chattr", "-i", union.at / "f", check=False)


def test_the_daemon_holds_no_way_to_write_a_lower_branch(pyunion: Union) -> None:
    """The strongest form of the promise: not one of its descriptors could be used for a change."""
    write(pyunion.low / "d/f", "x")
    pyunion.mount()
    assert (pyunion.at / "d/f").read_text() == "x"
    device = pyunion.low.stat().st_dev
    inside = {(pyunion.low / name).stat().st_ino for name in (".", "d", "d/f")}
    checked = 0
    for fd in os.listdir(f"/proc/{pyunion.daemon.pid}/fd"):
        path = f"/proc/{pyunion.daemon.pid}/fd/{fd}"
        try:
            st = os.stat(path)
        except FileNotFoundError:
            continue  # closed since it was listed
        if (st.st_dev, st.st_ino in inside) == (device, True):
            checked += 1
            assert outcome(os.chmod, path, 0o777) == "EROFS"
            assert outcome(os.setxattr, path, "user.x", b"1") == "EROFS"
    assert checked


def test_symlinks_in_a_branch_are_never_followed_by_the_daemon(union: Union) -> None:
    outside = union.base / "outside"
    write(outside / "secret", "s")
    (union.low / "way").symlink_to(outside)
    (union.low2 / "way").mkdir()
    write(union.low2 / "way/own", "o")
    (union.low / "file").symlink_to(outside / "secret")
    union.mount()
    assert os.readlink(union.at / "way") == str(outside)
    os.setxattr(union.at / "way", "trusted.k", b"v", follow_symlinks=False)
    (union.at / "way").rename(union.at / "moved")
    (union.at / "moved").unlink()
    write(union.at / "way/secret", "mine")
    os.chown(union.at / "file", 5, 5, follow_symlinks=False)
    (union.at / "file").unlink()
    assert tree(outside) == ["secret"]
    assert (outside / "secret").read_text() == "s"
    assert (outside / "secret").stat().st_uid == 0
    assert tree(union.at) == ["way/", "way/secret"]


def test_a_directory_swapped_for_a_symlink_behind_the_mount(pyunion: Union) -> None:
    """The branches belong to the daemon while mounted; who breaks that gets errors, never a way out."""
    outside = pyunion.base / "outside"
    write(outside / "secret")
    write(pyunion.top / "d/f")
    pyunion.compare_with_kernel = False
    pyunion.daemon.expect_complaints = True
    pyunion.mount()
    assert outcome(os.stat, pyunion.at / "d/f") == "OK"
    run("mv", pyunion.top / "d", pyunion.base / "away")
    (pyunion.top / "d").symlink_to(outside)
    outcome(write, pyunion.at / "d/new", "x")
    outcome(os.unlink, pyunion.at / "d/secret")
    assert tree(outside) == ["secret"]
    assert outcome(os.stat, pyunion.at) == "OK"


def test_branches_changed_behind_the_mount_never_break_it(union: Union) -> None:
    for number in range(20):
        write(union.low / f"d/f{number}", "x")
    union.watch_lowers = union.compare_with_kernel = False
    if union.kind == "pyunion":
        union.daemon.expect_complaints = True
    union.mount()
    assert len(os.listdir(union.at / "d")) == 20
    for number in range(5):
        (union.low / f"d/f{number}").unlink()
    (union.low / "d/f6").rename(union.low / "d/f66")
    run("rm", "-rf", union.top / "d")
    for _ in range(3):
        for number in range(20):
            outcome((union.at / f"d/f{number}").read_bytes)
            outcome(os.chmod, union.at / f"d/f{number}", 0o600)
    assert outcome(os.stat, union.at) == "OK"
    assert write(union.at / "fresh", "ok").read_text() == "ok"


def _second(union: Union) -> tuple[PyunionMount, Layers]:
    point = union.base / "second"
    point.mkdir()
    return PyunionMount(point), Layers([union.low2], union.top, union.work)


def test_an_upper_in_use_is_refused_and_the_user_named(pyunion: Union) -> None:
    pyunion.mount()
    second, layers = _second(pyunion)
    with pytest.raises(MountRefused) as refusal:
        second.start(layers)
    assert str(pyunion.daemon.pid) in str(refusal.value) or str(pyunion.at) in str(refusal.value)
    assert write(pyunion.at / "f", "works").read_text() == "works"
    pyunion.unmount()
    second.start(layers)
    second.stop()


@pytest.mark.parametrize("case", ["same", "work in upper", "upper in lower", "upper is lower", "other device"])
def test_overlapping_branches_are_refused(pyunion: Union, case: str) -> None:
    (pyunion.low / "inner").mkdir()
    (pyunion.top / "inner").mkdir()
    lower, upper, work = pyunion.low, pyunion.top, pyunion.work
    if case == "same":
        work = upper
    elif case == "work in upper":
        work = upper / "inner"
    elif case == "upper in lower":
        upper = lower / "inner"
    elif case == "upper is lower":
        upper = lower
    elif case == "other device":
        run("mount", "-t", "tmpfs", "other", work)
    try:
        with pytest.raises(MountRefused):
            PyunionMount(pyunion.at).start(Layers([lower], upper, work))
    finally:
        if case == "other device":
            run("umount", work)


def test_the_mount_point_may_be_one_of_its_own_branches(pyunion: Union) -> None:
    """Branches are pinned before mounting, so the daemon never looks into its own mount."""
    write(pyunion.low / "d/x", "D")
    mount = PyunionMount(pyunion.low)
    try:
        mount.start(Layers([pyunion.low, pyunion.low2], pyunion.top, pyunion.work))
    except MountRefused:
        return  # a sentence is as good
    try:
        assert run("timeout", "10", "cat", pyunion.low / "d/x") == "D"
        run("timeout", "10", "sh", "-c", 'echo n > "$0/d/new"', pyunion.low)
    finally:
        mount.stop()
    assert tree(pyunion.top) == ["d/", "d/new"]
    assert tree(pyunion.low) == ["d/", "d/x"]


def test_a_bind_mount_below_a_lower_branch_stays_apart(union: Union) -> None:
    """Two directories with one device and inode number are still two places in the union."""
    write(union.low / "source/item")
    (union.low / "view").mkdir()
    union.watch_lowers = union.compare_with_kernel = False
    run("mount", "--bind", union.low / "source", union.low / "view")
    try:
        union.mount()
        assert sorted(os.listdir(union.at)) == ["source", "view"]
        write(union.at / "view/new")
        assert not (union.at / "source/new").exists()
        union.unmount()
    finally:
        run("umount", union.low / "view")


def test_other_users_see_the_union(union: Union) -> None:
    write(union.low / "f", "for all")
    union.mount()
    assert as_user("cat", union.at / "f") == "for all"


def test_the_union_can_be_a_lower_branch_of_another(union: Union) -> None:
    write(union.low / "d/f", "x")
    union.mount()
    upper, work, point = (union.base / name for name in ("upper2", "work2", "union2"))
    for path in (upper, work, point):
        path.mkdir()
    options = f"lowerdir={union.at},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, point], check=True)
    try:
        write(point / "d/f", "changed")
        run("rm", "-r", point / "d")
        (point / "d").mkdir()
        assert tree(point) == ["d/"]
    finally:
        run("umount", point)
    assert (union.at / "d/f").read_text() == "x"
