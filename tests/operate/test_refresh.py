"""`pyunion refresh`: what was changed in lower branches from outside is seen, and those who use the union go on."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest

from tests.harness.files import append, make_opaque, make_whiteout, outcome, run, write
from tests.harness.mounts import PATIENCE, REPOSITORY
from tests.harness.union import Union
from tests.operate.conftest import told
from tests.operate.live import grow, numbers, refresh, walk


def _replace(path: Path, text: str) -> None:
    """As editors and package managers do it."""
    write(path.with_name("replacement"), text).rename(path)


def test_everything_that_can_be_done_from_outside(pyunion: Union) -> None:
    low, at = pyunion.low, pyunion.at
    for name in ("replaced", "truncated", "grown", "removed", "chmod", "becomes_dir", "becomes_link", "dir/file"):
        write(low / name, "before")
    write(low / "becomes_file/file", "before")
    write(low / "gone/deep/file", "before")
    write(low / "swapped/before", "before")
    below = write(pyunion.low2 / "dir/below", "before")
    write(pyunion.low2 / "shut/below", "before")
    write(pyunion.low2 / "covered", "before")
    (low / "shut").mkdir()
    (low / "link").symlink_to("before")
    pyunion.mount(lowers=[low, pyunion.low2])
    walk(at)
    for here, _, files in os.walk(at):
        for name in files:
            outcome((Path(here) / name).read_text)
    stay = numbers(at)
    _replace(low / "replaced", "after")
    os.truncate(low / "truncated", 2)
    append(low / "grown", ", after")
    (low / "removed").unlink()
    (low / "chmod").chmod(0o600)
    os.setxattr(low / "chmod", "user.after", b"x")
    (low / "becomes_dir").unlink()
    write(low / "becomes_dir/file", "after")
    (low / "becomes_link").unlink()
    (low / "becomes_link").symlink_to("after")
    shutil.rmtree(low / "becomes_file")
    write(low / "becomes_file", "after")
    shutil.rmtree(low / "gone")
    shutil.rmtree(low / "swapped")
    write(low / "swapped/after", "after")
    write(low / "appears", "after")
    write(low / "dir/appears", "after")
    (low / "dir/file").rename(low / "dir/moved")
    make_whiteout(low / "covered")
    make_opaque(low / "shut")
    (low / "link").unlink()
    (low / "link").symlink_to("after")
    write(below, "after, and longer")
    pyunion.restacked(low, pyunion.low2)
    refresh(pyunion)
    pyunion.assert_shows_its_branches()
    assert (at / "appears").read_text() == "after"
    assert (at / "grown").read_text() == "before, after"
    for name in ("truncated", "grown", "chmod", "dir", "dir/below", "shut"):
        assert (at / name).stat().st_ino == stay[name]
    pyunion.remount()


def test_who_has_it_open_goes_on(pyunion: Union) -> None:
    """With the file that was replaced, or with what was written into it."""
    write(pyunion.low / "replaced", "before")
    write(pyunion.low / "written", "before")
    write(pyunion.low / "removed", "before")
    pyunion.mount()
    with (
        (pyunion.at / "replaced").open() as replaced,
        (pyunion.at / "written").open("rb") as written,
        (pyunion.at / "removed").open() as removed,
    ):
        mapped = mmap.mmap(written.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped[:] == b"before"
        number = os.fstat(replaced.fileno()).st_ino
        pyunion.daemon.await_open(pyunion.low / "replaced", pyunion.low / "removed")
        _replace(pyunion.low / "replaced", "after it")
        (pyunion.low / "written").write_text("after.")
        (pyunion.low / "removed").unlink()
        refresh(pyunion)
        pyunion.restacked(pyunion.low, pyunion.low2, pyunion.low3)
        assert (pyunion.at / "replaced").read_text() == "after it"
        assert replaced.read() == "before"
        assert (os.fstat(replaced.fileno()).st_ino, os.fstat(replaced.fileno()).st_size) == (number, 6)
        assert (mapped[:], written.read()) == (b"after.", b"after.")
        assert removed.read() == "before"
        assert os.fstat(removed.fileno()).st_size == 6
        mapped.close()


def test_upper_stays(pyunion: Union) -> None:
    write(pyunion.low / "copied", "before")
    write(pyunion.low / "deleted", "before")
    write(pyunion.low / "dir/file", "before")
    pyunion.mount()
    append(pyunion.at / "copied", ", changed")
    (pyunion.at / "deleted").unlink()
    (pyunion.at / "dir").rename(pyunion.at / "moved")
    with (pyunion.at / "new").open("w") as new:
        new.write("not yet")
        _replace(pyunion.low / "copied", "after")
        _replace(pyunion.low / "deleted", "after")
        write(pyunion.low / "dir/appears", "after")
        write(pyunion.low / "new", "after")
        refresh(pyunion)
        pyunion.restacked(pyunion.low, pyunion.low2, pyunion.low3)
        new.write(" written")
    assert (pyunion.at / "copied").read_text() == "before, changed"
    assert (pyunion.at / "new").read_text() == "not yet written"
    assert sorted(os.listdir(pyunion.at)) == ["copied", "moved", "new"]
    assert (pyunion.at / "moved/appears").read_text() == "after"


def test_a_union_without_upper_whose_files_are_passed_through(pyunion: Union) -> None:
    write(pyunion.low / "replaced", "before")
    write(pyunion.low / "written", "before")
    pyunion.mount(writable=False)
    with (pyunion.at / "replaced").open() as replaced, (pyunion.at / "written").open() as written:
        assert told("status", pyunion.at)["passthrough"]["files"] == 2
        _replace(pyunion.low / "replaced", "after it")
        append(pyunion.low / "written", ", after")
        refresh(pyunion)
        pyunion.restacked(pyunion.low, pyunion.low2, pyunion.low3)
        assert (pyunion.at / "replaced").read_text() == "after it"
        assert (replaced.read(), written.read()) == ("before", "before, after")
        assert (pyunion.at / "written").stat().st_size == len("before, after")


def test_nothing_changed(pyunion: Union) -> None:
    """Nobody is disturbed: numbers, who is where, and what is open."""
    write(pyunion.low / "dir/file", "text")
    write(pyunion.low2 / "dir/other", "text")
    pyunion.mount()
    before = numbers(pyunion.at)
    with (pyunion.at / "dir/file").open() as file:
        where = run("sh", "-c", f"cd {pyunion.at}/dir && {_refresh_command(pyunion)} && pwd -P && ls")
        assert where == f"{pyunion.at}/dir\nfile\nother\n"
        assert file.read() == "text"
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == str(pyunion.at / "dir/file")
    assert numbers(pyunion.at) == before


def _refresh_command(union: Union) -> str:
    return f"PYTHONPATH={REPOSITORY} {sys.executable} -m pyunion refresh {union.at}"


@pytest.mark.parametrize("seed", range(5))
def test_any_changes(pyunion: Union, seed: int) -> None:
    """Whole branches are others, under a kernel that knows them and clients that use them."""
    pyunion.compare_with_kernel = False  # it lists whiteouts where nothing merges
    pyunion.daemon.expect_complaints = True
    random_ = random.Random(seed)
    lowers = [pyunion.low, pyunion.low2]
    for branch in lowers:
        grow(branch, random_)
    pyunion.mount(lowers=lowers)
    end = threading.Event()

    def use() -> None:
        while not end.is_set():
            _walk_whatever_there_is(pyunion.at)

    client = threading.Thread(target=use)
    client.start()
    try:
        for _ in range(6):
            branch = random_.choice(lowers)
            for name in os.listdir(branch):
                if random_.random() < 0.7:
                    path = branch / name
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            fresh = pyunion.base / "fresh"
            grow(fresh, random_)
            run("cp", "-a", "--remove-destination", f"{fresh}/.", branch, check=False)
            shutil.rmtree(fresh)
            refresh(pyunion)
            pyunion.restacked(*lowers)
            pyunion.assert_shows_its_branches(by_the_kernel=False)
    finally:
        end.set()
        client.join(PATIENCE)
    pyunion.remount()


def _walk_whatever_there_is(at: Path) -> None:
    for here, directories, files in os.walk(at):
        for name in (*directories, *files):
            outcome((Path(here) / name).lstat)
            outcome((Path(here) / name).read_bytes)
