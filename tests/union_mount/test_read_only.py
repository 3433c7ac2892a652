"""Unions that cannot be written to: without upper, or with `ro`, which leaves upper what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.files import append, make_whiteout, outcome, run, touch_open, tree, write
from tests.harness.mounts import Layers, MountRefused, PyunionMount
from tests.harness.snapshot import snapshot
from tests.harness.union import Union


@pytest.mark.parametrize("count", [1, 3])
def test_without_upper_every_change_is_refused(pyunion: Union, count: int) -> None:
    union = pyunion
    write(union.low / "f", "text")
    write(union.low / "d/inside")
    union.mount(lowers=(union.low, union.low2, union.low3)[:count], writable=False)
    at = union.at
    attempts = {
        "open": outcome(touch_open, at / "f", os.O_RDWR),
        "append": outcome(touch_open, at / "f", os.O_WRONLY | os.O_APPEND),
        "create": outcome(touch_open, at / "n", os.O_CREAT | os.O_WRONLY),
        "truncate": outcome(os.truncate, at / "f", 0),
        "mkdir": outcome(os.mkdir, at / "k"),
        "unlink": outcome(os.unlink, at / "f"),
        "rmdir": outcome(os.rmdir, at / "d"),
        "rename": outcome(os.rename, at / "f", at / "g"),
        "link": outcome(os.link, at / "f", at / "h"),
        "symlink": outcome(os.symlink, "f", at / "s"),
        "mknod": outcome(os.mkfifo, at / "p"),
        "chmod": outcome(os.chmod, at / "f", 0o600),
        "chown": outcome(os.chown, at / "f", 1, 1),
        "utime": outcome(os.utime, at / "f", (1, 1)),
        "setxattr": outcome(os.setxattr, at / "f", "user.a", b"1"),
    }
    assert attempts == dict.fromkeys(attempts, "EROFS")
    assert (at / "f").read_text() == "text"
    assert tree(at) == ["d/", "d/inside", "f"]


def test_the_ro_option_makes_a_writable_union_read_only(union: Union) -> None:
    write(union.low / "f", "text")
    union.mount("ro")
    assert outcome(touch_open, union.at / "n", os.O_CREAT | os.O_WRONLY) == "EROFS"
    assert outcome(append, union.at / "f", "x") == "EROFS"
    assert (union.at / "f").read_text() == "text"
    union.unmount()
    assert tree(union.top) == []


def _change_everything(at: Path) -> None:
    append(at / "f", "+")
    (at / "d/f").rename(at / "moved")
    (at / "tree").rename(at / "renamed")
    (at / "gone").unlink()
    run("rm", "-r", at / "d2")
    write(at / "d2/new")
    append(at / "one", "b")
    (at / "renamed/link").unlink()
    (at / "renamed/deep/mode").chmod(0o600)
    run("chown", "-h", "1:1", at / "symlink")


def _make_lowers(union: Union) -> None:
    union.compare_with_kernel = False  # which reads no index where upper is given to it as a lower branch
    for path in ("f", "d/f", "gone", "d2/old", "tree/deep/f", "tree/deep/mode"):
        write(union.low / path, path)
    write(union.low2 / "tree/below")
    write(union.low / "one", "a")
    for name in ("two", "tree/link", "tree/deep/last"):
        os.link(union.low / "one", union.low / name)
    (union.low / "symlink").symlink_to("f")


def _view(at: Path) -> dict[str, tuple[object, ...]]:
    view: dict[str, tuple[object, ...]] = {}
    for name in tree(at):
        path = at / name
        st = path.lstat()
        # how many names a directory has depends on who counts; the size of one is the branch's
        links = None if path.is_dir() else (st.st_nlink, st.st_size)
        text = path.read_text() if path.is_file() else ""
        view[name] = (st.st_ino, st.st_mode, st.st_uid, links, text, st.st_mtime_ns)
    return view


@pytest.mark.parametrize("options", [["index=on"], ["index=off"], ["index=on", "metacopy=on"]], ids=str)
def test_with_ro_a_union_is_the_same_down_to_inode_numbers_and_links(union: Union, options: list[str]) -> None:
    _make_lowers(union)
    union.mount(*options)
    _change_everything(union.at)
    union.remount()  # nothing is left in caches
    before = _view(union.at)
    union.unmount()
    union.mount("ro", *options)
    assert _view(union.at) == before


def test_the_links_of_a_lower_file_stay_one_with_ro(union: Union) -> None:
    """Also those that were not met since the file changed by another of its names."""
    _make_lowers(union)
    union.mount("index=on")
    append(union.at / "one", "b")
    union.unmount()
    union.mount("ro", "index=on")
    names = ("one", "two", "tree/link", "tree/deep/last")
    assert {name: (union.at / name).read_text() for name in names} == dict.fromkeys(names, "ab")
    assert {(union.at / name).stat().st_nlink for name in names} == {4}
    assert len({(union.at / name).stat().st_ino for name in names}) == 1


@contextmanager
def _made_read_only(*places: Path) -> Iterator[None]:
    for place in places:
        run("mount", "--bind", "-o", "ro", place, place)
    try:
        yield
    finally:
        for place in places:
            run("umount", place)


@pytest.mark.parametrize("fresh", [True, False], ids=["never written to", "written to"])
def test_with_ro_nothing_is_written_to_upper_or_work(pyunion: Union, fresh: bool) -> None:
    """So both may be on a read-only file system."""
    union = pyunion
    _make_lowers(union)
    make_whiteout(union.top / "f")
    if not fresh:
        union.mount()
        append(union.at / "one", "b")
        union.unmount()
    before = snapshot(union.top), snapshot(union.work)
    with _made_read_only(union.top, union.work):
        union.mount("ro")
        assert "f" not in tree(union.at)
        assert (union.at / "two").read_text() == ("a" if fresh else "ab")
        union.unmount()
    union.mount("ro")
    assert len(_view(union.at)) == len(tree(union.at))
    union.unmount()
    assert (snapshot(union.top), snapshot(union.work)) == before


def test_an_upper_has_several_readers_or_one_writer(pyunion: Union) -> None:
    write(pyunion.low / "f")
    at = pyunion.base / "other"
    at.mkdir()
    other = PyunionMount(at)
    layers = Layers([pyunion.low], pyunion.top, pyunion.work)
    pyunion.mount("ro")
    other.start(layers, ["ro"])
    assert tree(at) == ["f"]
    other.stop()
    with pytest.raises(MountRefused, match="is in use by"):
        other.start(layers)
    pyunion.unmount()
    pyunion.mount()
    with pytest.raises(MountRefused, match="is in use by"):
        other.start(layers, ["ro"])
