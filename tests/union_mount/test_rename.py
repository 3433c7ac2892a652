"""rename(2) and renameat2(2): files and directories of any layer over any target, also after a remount."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.harness.files import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    append,
    is_whiteout,
    mark,
    outcome,
    renameat2,
    run,
    tree,
    write,
)
from tests.harness.mounts import unmount
from tests.harness.union import Union


def assert_tree(union: Union, *expected: str) -> None:
    """What the union lists now, and again after a remount."""
    assert tree(union.at) == sorted(expected)
    union.remount()
    assert tree(union.at) == sorted(expected)


def test_a_lower_file_leaves_a_whiteout_behind(union: Union) -> None:
    write(union.low / "f", "text")
    write(union.low / "d/keep")
    union.mount()
    (union.at / "f").rename(union.at / "d/g")
    assert_tree(union, "d/", "d/g", "d/keep")
    assert (union.at / "d/g").read_text() == "text"
    union.unmount()
    assert is_whiteout(union.top / "f")


def test_an_upper_file_leaves_nothing_behind(union: Union) -> None:
    union.mount()
    write(union.at / "a", "text").rename(union.at / "b")
    write(union.at / "s", "colour")
    run("sed", "-i", "s/our/or/", union.at / "s")
    (union.at / "d").mkdir()
    write(union.at / "d/x").rename(union.at / "d/y")
    (union.at / "d").rename(union.at / "e")
    assert_tree(union, "b", "e/", "e/y", "s")
    union.unmount()
    assert tree(union.top) == ["b", "e/", "e/y", "s"]


@pytest.mark.parametrize("source", ["low", "top"])
@pytest.mark.parametrize("target", ["low", "top", "removed"])
def test_a_file_over_a_file(union: Union, source: str, target: str) -> None:
    write(union.low / "target", "old")
    if target == "top":
        write(union.top / "target", "old, upper")
    write(getattr(union, source) / "source", "new")
    union.mount()
    if target == "removed":
        (union.at / "target").unlink()
    (union.at / "source").rename(union.at / "target")
    assert_tree(union, "target")
    assert (union.at / "target").read_text() == "new"


def test_a_lower_directory_moves_without_copying_its_files(union: Union) -> None:
    write(union.low / "d/s/a", "1")
    write(union.low2 / "d/s/b", "2")
    write(union.low2 / "d/c", "3")
    union.mount()
    (union.at / "d").rename(union.at / "e")
    assert_tree(union, "e/", "e/c", "e/s/", "e/s/a", "e/s/b")
    assert (union.at / "e/s/b").read_text() == "2"
    union.unmount()
    assert tree(union.top) == ["d", "e/"]
    assert mark(union.top / "e", "redirect") == b"d"


def test_a_directory_that_moves_elsewhere_has_an_absolute_redirect(union: Union) -> None:
    write(union.low / "a/b/f")
    write(union.low / "x/y/keep")
    union.mount()
    (union.at / "a/b").rename(union.at / "x/y/z")
    (union.at / "x/y/z").rename(union.at / "x/y/zz")
    assert_tree(union, "a/", "x/", "x/y/", "x/y/keep", "x/y/zz/", "x/y/zz/f")
    union.unmount()
    assert mark(union.top / "x/y/zz", "redirect") == b"/a/b"


def test_moves_of_moved_directories(union: Union) -> None:
    write(union.low / "a/b/c/f", "x")
    write(union.low2 / "a/b/c/g", "y")
    union.mount()
    at = union.at
    (at / "a/b/c").rename(at / "c")
    (at / "a").rename(at / "A")
    (at / "A/b").rename(at / "c/b")
    (at / "c").rename(at / "A/C")
    assert_tree(union, "A/", "A/C/", "A/C/b/", "A/C/f", "A/C/g")
    append(at / "A/C/g", "+")
    (at / "A/C").rename(at / "end")
    union.remount()
    assert (at / "end/g").read_text() == "y+"


def test_a_partly_changed_directory_moves_whole(union: Union) -> None:
    for name in ("p", "q", "r", "k/z"):
        write(union.low / "box" / name)
    union.mount()
    append(union.at / "box/q", "changed")
    (union.at / "box/r").unlink()
    run("mv", union.at / "box", union.at / "crate")
    assert_tree(union, "crate/", "crate/k/", "crate/k/z", "crate/p", "crate/q")
    assert (union.at / "crate/q").read_text() == "changed"


def test_changes_inside_a_moved_directory_hold(union: Union) -> None:
    for name in ("f1", "f2", "f3"):
        write(union.low / "lib" / name, name)
    union.mount()
    (union.at / "lib").rename(union.at / "lib.new")
    (union.at / "lib.new/f1").unlink()
    write(union.at / "lib.new/f2", "other")
    (union.at / "lib.new/f2").unlink()
    write(union.at / "lib/f3", "z")
    (union.at / "lib/f3").unlink()
    assert_tree(union, "lib/", "lib.new/", "lib.new/f3")
    shutil.rmtree(union.at / "lib")
    shutil.rmtree(union.at / "lib.new")
    assert_tree(union)


def test_a_new_directory_takes_the_place_of_a_moved_one(union: Union) -> None:
    write(union.low / "d/old")
    union.mount()
    (union.at / "d").rename(union.at / "e")
    (union.at / "d").mkdir()
    write(union.at / "d/new")
    (union.at / "e").rename(union.at / "d/e")
    assert_tree(union, "d/", "d/e/", "d/e/old", "d/new")


def test_a_directory_moves_onto_a_removed_name(union: Union) -> None:
    """What lies below the name must not come back through the directory that took it."""
    write(union.low / "pkg/lib/one")
    write(union.low / "pkg/lib/two")
    union.mount()
    run("cp", "-r", union.at / "pkg", union.at / "stage")
    shutil.rmtree(union.at / "pkg")
    (union.at / "stage/lib/one").rename(union.at / "stage/lib/uno")
    (union.at / "stage").rename(union.at / "pkg")
    assert_tree(union, "pkg/", "pkg/lib/", "pkg/lib/two", "pkg/lib/uno")


def test_an_upper_directory_moves_into_a_merged_one_over_a_hidden_name(union: Union) -> None:
    write(union.low / "d/sub/old")
    union.mount()
    shutil.rmtree(union.at / "d/sub")
    (union.at / "new/kid").mkdir(parents=True)
    (union.at / "new").rename(union.at / "d/sub")
    assert_tree(union, "d/", "d/sub/", "d/sub/kid/")


def test_a_directory_over_one_that_only_looks_empty(union: Union) -> None:
    write(union.low / "emptied/a")
    write(union.low / "emptied/b")
    write(union.low / "full/x")
    union.mount()
    at = union.at
    (at / "emptied/a").unlink()
    (at / "emptied/b").unlink()
    write(at / "new/f")
    write(at / "new2/f")
    (at / "new").rename(at / "emptied")
    assert outcome(os.rename, at / "new2", at / "full") == "ENOTEMPTY"
    assert_tree(union, "emptied/", "emptied/f", "full/", "full/x", "new2/", "new2/f")


def test_a_lower_directory_over_an_empty_lower_directory(union: Union) -> None:
    write(union.low / "source/f")
    (union.low / "target").mkdir()
    (union.low2 / "target").mkdir()
    union.mount()
    (union.at / "source").rename(union.at / "target")
    assert_tree(union, "target/", "target/f")


def test_refusals(union: Union) -> None:
    write(union.low / "a/b/c/f")
    write(union.low / "file")
    union.mount()
    at = union.at
    (at / "x/y").mkdir(parents=True)
    assert outcome(os.rename, at / "a", at / "a/b/z") == "EINVAL"
    assert outcome(os.rename, at / "x", at / "x/y/z") == "EINVAL"
    assert outcome(os.rename, at / "a/b/c", at / "a") == "ENOTEMPTY"
    assert outcome(os.rename, at / "file", at / "a") == "EISDIR"
    assert outcome(os.rename, at / "a", at / "file") == "ENOTDIR"
    assert outcome(os.rename, at / "absent", at / "n") == "ENOENT"
    assert outcome(os.rename, at / "file", at / "absent/n") == "ENOENT"
    assert outcome(os.rename, at / "file", at / "file") == "OK"
    assert_tree(union, "a/", "a/b/", "a/b/c/", "a/b/c/f", "file", "x/", "x/y/")


def test_noreplace(union: Union) -> None:
    write(union.low / "f", "lower")
    write(union.low / "gone")
    write(union.low / "d/x")
    union.mount()
    at = union.at
    (at / "gone").unlink()
    write(at / "new")
    assert outcome(renameat2, at / "new", at / "f", RENAME_NOREPLACE) == "EEXIST"
    assert outcome(renameat2, at / "d", at / "f", RENAME_NOREPLACE) == "EEXIST"
    assert outcome(renameat2, at / "new", at / "gone", RENAME_NOREPLACE) == "OK"
    assert outcome(renameat2, at / "d", at / "e", RENAME_NOREPLACE) == "OK"
    assert_tree(union, "e/", "e/x", "f", "gone")


def exchange(a: Path, b: Path) -> None:
    renameat2(a, b, RENAME_EXCHANGE)


def test_exchange_of_files_and_directories(union: Union) -> None:
    write(union.low / "a", "lower")
    write(union.low / "d/x")
    union.mount()
    at = union.at
    write(at / "b", "upper")
    write(at / "u/y")
    exchange(at / "a", at / "b")
    exchange(at / "b", at / "u")
    exchange(at / "u", at / "d")
    assert_tree(union, "a", "b/", "b/y", "d", "u/", "u/x")
    assert ((at / "a").read_text(), (at / "d").read_text()) == ("upper", "lower")


def test_exchange_of_two_lower_directories(union: Union) -> None:
    write(union.low / "p/one")
    write(union.low2 / "q/r/two")
    union.mount()
    exchange(union.at / "p", union.at / "q/r")
    assert_tree(union, "p/", "p/two", "q/", "q/r/", "q/r/one")
    exchange(union.at / "p", union.at / "q/r")
    assert_tree(union, "p/", "p/one", "q/", "q/r/", "q/r/two")


def test_exchange_refusals(union: Union) -> None:
    write(union.low / "a/b/f")
    union.mount()
    assert outcome(exchange, union.at / "a", union.at / "none") == "ENOENT"
    assert outcome(exchange, union.at / "a", union.at / "a/b") == "EINVAL"
    assert outcome(renameat2, union.at / "a", union.at / "n", RENAME_EXCHANGE | RENAME_NOREPLACE) == "EINVAL"


def test_open_descriptors_follow_a_move(union: Union) -> None:
    union.mount()
    write(union.at / "u/g", "0")
    fd = os.open(union.at / "u/g", os.O_RDWR | os.O_APPEND)
    directory = os.open(union.at / "u", os.O_RDONLY)
    try:
        (union.at / "u").rename(union.at / "v")
        os.write(fd, b"1")
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory))
    finally:
        os.close(fd)
        os.close(directory)
    assert (union.at / "v/g").read_text() == "01"
    assert_tree(union, "v/", "v/g", "v/new")


@pytest.mark.parametrize("option", ["rw", "metacopy=on", "index=off", "userxattr", "xino=off"])
def test_a_directory_is_renamed_wherever_its_parts_are(pyunion: Union, option: str) -> None:
    """Of several layers on two file systems: the kernel says EXDEV for some of these options."""
    union = pyunion
    union.compare_with_kernel = option != "userxattr"  # it mounts them in another way
    run("mount", "-t", "tmpfs", "low2", union.low2)
    try:
        write(union.low / "d/s/a", "1")
        write(union.low2 / "d/s/b", "2")
        write(union.low3 / "e/c", "3")
        union.mount(option)
        (union.at / "empty").mkdir()
        (union.at / "d").rename(union.at / "e/d")  # elsewhere
        (union.at / "e/d/s").rename(union.at / "empty")  # over another one
        (union.at / "e").rename(union.at / "f")  # one that has others inside
        for _ in range(2):
            assert tree(union.at) == ["empty/", "empty/a", "empty/b", "f/", "f/c", "f/d/"]
            assert (union.at / "empty/b").read_text() == "2"
            union.remount()
    finally:
        union.clean_up()
        unmount(union.low2)


def test_without_redirects_a_lower_directory_cannot_be_renamed(union: Union) -> None:
    write(union.low / "d/f", "x")
    union.mount("redirect_dir=off")
    assert outcome(os.rename, union.at / "d", union.at / "e") == "EXDEV"
    (union.at / "new").mkdir()
    (union.at / "new").rename(union.at / "renamed")
    run("mv", union.at / "d", union.at / "e")  # mv copies and removes
    assert tree(union.at) == ["e/", "e/f", "renamed/"]


def test_a_directory_made_of_two_redirected_layers(union: Union) -> None:
    """An upper of one session becomes a lower branch of the next, and what it moved is moved again."""
    write(union.low3 / "a/f", "bottom")
    union.mount(lowers=[union.low3])
    (union.at / "a").rename(union.at / "b")
    union.unmount()
    shutil.rmtree(union.low2)
    union.top.rename(union.low2)
    union.top.mkdir()
    union.mount(lowers=[union.low2, union.low3])
    (union.at / "b").rename(union.at / "c")
    write(union.at / "c/g")
    assert_tree(union, "c/", "c/f", "c/g")
