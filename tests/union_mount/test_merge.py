"""Merging: which layer's object is seen under a name, and what a directory of several layers lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.files import (
    make_opaque,
    make_whiteout,
    outcome,
    run,
    tree,
    write,
)
from tests.harness.mounts import MountRefused
from tests.harness.union import Union


def test_the_topmost_layer_wins(union: Union) -> None:
    for layer in (union.low, union.low2, union.low3):
        write(layer / "same", layer.name)
        write(layer / f"only-{layer.name}")
    write(union.low2 / "middle", "lower2")
    write(union.low3 / "middle", "lower3")
    union.mount()
    assert (union.at / "same").read_text() == "lower1"
    assert (union.at / "middle").read_text() == "lower2"
    assert tree(union.at) == ["middle", "only-lower1", "only-lower2", "only-lower3", "same"]


def test_what_upper_already_holds_lies_above_all(union: Union) -> None:
    write(union.low / "f", "below")
    write(union.top / "f", "above")
    write(union.top / "d/new")
    write(union.low / "d/old")
    union.mount()
    assert (union.at / "f").read_text() == "above"
    assert tree(union.at) == ["d/", "d/new", "d/old", "f"]


def test_directories_merge_through_all_layers_and_show_the_topmost_attributes(union: Union) -> None:
    for number, layer in enumerate((union.low, union.low2, union.low3)):
        write(layer / "d/e" / layer.name)
        os.chown(layer / "d", number + 10, number + 20)
        (layer / "d").chmod(0o750 + number)
    union.mount()
    assert tree(union.at) == ["d/", "d/e/", "d/e/lower1", "d/e/lower2", "d/e/lower3"]
    st = (union.at / "d").stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (10, 20, 0o750)


def test_a_file_hides_the_directories_below_it(union: Union) -> None:
    write(union.low2 / "x", "file")
    write(union.low3 / "x/inside")
    union.mount()
    assert (union.at / "x").read_text() == "file"
    assert outcome(os.stat, union.at / "x/inside") == "ENOTDIR"


def test_a_directory_hides_the_file_below_it_and_what_is_below_that(union: Union) -> None:
    write(union.low / "x/top")
    write(union.low2 / "x", "file")
    write(union.low3 / "x/bottom")
    union.mount()
    assert tree(union.at) == ["x/", "x/top"]
    assert outcome(os.stat, union.at / "x/bottom") == "ENOENT"


def test_nothing_merges_through_a_symlink(union: Union) -> None:
    write(union.low3 / "real/header", "old")
    write(union.low / "include/header", "new")
    (union.low2 / "include").symlink_to("real")
    write(union.low3 / "include/hidden")
    union.mount()
    assert tree(union.at) == ["include/", "include/header", "real/", "real/header"]
    assert (union.at / "include/header").read_text() == "new"


def test_a_whiteout_hides_below_its_layer_only(union: Union) -> None:
    write(union.low / "d/kept", "top")
    make_whiteout(union.low2 / "d/kept")
    write(union.low3 / "d/kept", "bottom")
    make_whiteout(union.low2 / "gone")
    write(union.low3 / "gone")
    make_whiteout(union.low / "of-nothing")
    union.mount()
    assert tree(union.at) == ["d/", "d/kept"]
    assert (union.at / "d/kept").read_text() == "top"
    assert outcome(os.stat, union.at / "gone") == "ENOENT"
    assert outcome(os.stat, union.at / "of-nothing") == "ENOENT"


def test_an_opaque_directory_ends_merging_at_any_depth(union: Union) -> None:
    make_opaque(union.low2 / "d")
    write(union.low / "d/sub/one")
    write(union.low2 / "d/sub/two")
    write(union.low3 / "d/sub/three")
    write(union.low3 / "d/three")
    union.mount()
    # The parent is listed first: what it learned must reach its subdirectories.
    assert os.listdir(union.at / "d") == ["sub"]
    assert tree(union.at) == ["d/", "d/sub/", "d/sub/one", "d/sub/two"]
    assert outcome(os.stat, union.at / "d/sub/three") == "ENOENT"


def test_an_opaque_upper_directory_hides_all_lower_ones(union: Union) -> None:
    make_opaque(union.top / "d")
    write(union.low / "d/old")
    union.mount()
    assert tree(union.at) == ["d/"]
    write(union.at / "d/old", "anew")
    union.remount()
    assert (union.at / "d/old").read_text() == "anew"


def test_lookup_and_listing_agree(union: Union) -> None:
    write(union.low / "d/file")
    make_whiteout(union.low / "d/gone")
    for name in ("file", "gone", "dir/x", "seen"):
        write(union.low2 / "d" / name)
    write(union.low3 / "d/dir/y")
    union.mount()
    listed = {entry.name: entry for entry in os.scandir(union.at / "d")}
    assert set(listed) == {"file", "dir", "seen"}
    for name in ("file", "dir", "seen", "gone", "never"):
        assert (outcome(os.stat, union.at / "d" / name) == "OK") == (name in listed)
    for entry in listed.values():
        assert entry.inode() == entry.stat().st_ino
        assert entry.is_dir() == (entry.name == "dir")


def test_dot_and_dotdot_are_listed_by_getdents(union: Union) -> None:
    write(union.low / "d/f")
    union.mount()
    assert sorted(run("ls", "-a", "-U", union.at / "d").split()) == [".", "..", "f"]
    assert os.stat(union.at / "d/..").st_ino == union.at.stat().st_ino


def test_branches_may_be_symlinks_and_colons_are_escaped(union: Union) -> None:
    strange = union.base / "with:colon and \\ back"
    write(strange / "a")
    write(union.low / "b")
    link = union.base / "link"
    link.symlink_to("lower1")
    union.mount(lowers=[strange, link])
    assert tree(union.at) == ["a", "b"]


def test_branches_of_any_bytes(pyunion: Union) -> None:
    pyunion.compare_with_kernel = False  # mount(8) cannot say such paths
    odd = [pyunion.base / os.fsdecode(name) for name in (b"a,b=c", b"\xff\xfe", b"new\nline", b"q\"uo'te #")]
    for number, branch in enumerate(odd):
        write(branch / f"f{number}")
    pyunion.compare_with_kernel = False  # mount(8) has no way to say such names to the kernel
    pyunion.mount(lowers=odd)
    assert tree(pyunion.at) == ["f0", "f1", "f2", "f3"]


@pytest.mark.parametrize("missing", ["lower", "upper", "work"])
def test_a_missing_branch_is_refused(union: Union, missing: str) -> None:
    lowers = [union.low, union.base / "absent"] if missing == "lower" else [union.low]
    if missing != "lower":
        {"upper": union.top, "work": union.work}[missing].rmdir()
    with pytest.raises(MountRefused):
        union.mount(lowers=lowers)
    assert not any(Path(union.at).iterdir())
