"""Reading overlayfs's on-disk format: redirects, metadata-only copies, both forms of whiteouts, nested marks.

Marks are set by hand here, or written by the kernel's overlayfs; both implementations must read them alike.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.files import append, make_opaque, make_whiteout, mark, outcome, run, tree, write
from tests.harness.mounts import KernelMount, Layers
from tests.harness.union import Union


@contextmanager
def kernel_overlay(union: Union, *options: str) -> Iterator[Path]:
    """The union's branches, written by the kernel."""
    kernel = KernelMount(union.at)
    kernel.start(Layers([union.low, union.low2, union.low3], union.top, union.work), options)
    try:
        yield union.at
    finally:
        kernel.stop()


def redirect(path: Path, target: bytes) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, "trusted.overlay.redirect", target)


def test_a_relative_redirect_names_a_sibling(union: Union) -> None:
    write(union.low2 / "d/old/kept")
    make_whiteout(union.low / "d/old")
    redirect(union.low / "d/new", b"old")
    union.mount()
    assert tree(union.at) == ["d/", "d/new/", "d/new/kept"]


def test_an_absolute_redirect_starts_at_the_root_of_the_union(union: Union) -> None:
    write(union.low2 / "a/b/source/kept")
    make_whiteout(union.low / "a/b/source")
    redirect(union.low / "elsewhere/new", b"/a/b/source")
    union.mount()
    assert tree(union.at) == ["a/", "a/b/", "elsewhere/", "elsewhere/new/", "elsewhere/new/kept"]


def test_redirects_chain_through_layers(union: Union) -> None:
    write(union.low3 / "first/sub/three")
    make_whiteout(union.low2 / "first")
    redirect(union.low2 / "second", b"first")
    write(union.low2 / "second/sub/two")
    make_whiteout(union.low / "second")
    redirect(union.low / "deep/third", b"/second")
    write(union.low / "deep/third/sub/one")
    union.mount()
    third = "deep/third/"
    assert tree(union.at) == [
        "deep/",
        third,
        *(third + n for n in ("sub/", "sub/one", "sub/three", "sub/two")),
    ]


def test_a_redirected_parent_moves_the_redirects_below_it(union: Union) -> None:
    write(union.low3 / "p/x/f")
    redirect(union.low2 / "p/y", b"x")
    make_whiteout(union.low2 / "p/x")
    redirect(union.low / "q", b"p")
    make_whiteout(union.low / "p")
    union.mount()
    assert tree(union.at) == ["q/", "q/y/", "q/y/f"]


def test_an_opaque_directory_takes_no_redirect(union: Union) -> None:
    write(union.low2 / "old/f")
    redirect(union.low / "new", b"old")
    make_opaque(union.low / "new")
    union.mount()
    assert tree(union.at) == ["new/", "old/", "old/f"]


def test_the_way_of_a_redirect_is_not_hidden_by_the_upper_layers(union: Union) -> None:
    write(union.low2 / "a/f")
    redirect(union.top / "b", b"a")
    write(union.top / "a/own")
    make_opaque(union.top / "a")
    union.mount()
    assert tree(union.at) == ["a/", "a/own", "b/", "b/f"]


@pytest.mark.parametrize("value", [b"/", b"//", b"x//y", b"a/b", b""])
def test_a_broken_redirect_never_shows_something_else(pyunion: Union, value: bytes) -> None:
    write(pyunion.low2 / "a/b/f")
    redirect(pyunion.low / "new", value)
    pyunion.compare_with_kernel = False  # it fails the look-up with EIO or warns, depending on the form
    pyunion.daemon.expect_complaints = True
    pyunion.mount()
    assert outcome(os.listdir, pyunion.at / "new") in ("OK", "EIO")
    if outcome(os.listdir, pyunion.at / "new") == "OK":
        assert os.listdir(pyunion.at / "new") == []


@pytest.mark.parametrize("value", [b"..", b".", b"/..", b"/a/../../x", b"/../../../etc"])
def test_no_redirect_leads_out_of_a_branch(pyunion: Union, value: bytes) -> None:
    write(pyunion.base / "secret")
    redirect(pyunion.low / "d/way", value)
    write(pyunion.low2 / "d/x/f")
    pyunion.compare_with_kernel = False  # it follows dots within the layer's mount
    pyunion.daemon.expect_complaints = True
    pyunion.mount()
    if outcome(os.listdir, pyunion.at / "d/way") == "OK":
        assert os.listdir(pyunion.at / "d/way") == []


def test_whiteouts_in_xattr_form(union: Union) -> None:
    """Empty files that a mark makes whiteouts, in directories that announce such files (Linux 6.7)."""
    for name in ("gone", "kept", "plain"):
        write(union.low2 / "d" / name, "below")
    make_opaque(union.low / "d", b"x")
    for name in ("gone", "plain"):
        write(union.low / "d" / name)
    os.setxattr(union.low / "d/gone", "trusted.overlay.whiteout", b"y")
    union.mount()
    assert tree(union.at) == ["d/", "d/kept", "d/plain"]
    assert outcome(os.stat, union.at / "d/gone") == "ENOENT"
    assert (union.at / "d/plain").read_text() == ""
    write(union.at / "d/gone", "anew")
    union.remount()
    assert (union.at / "d/gone").read_text() == "anew"


def test_xattr_whiteouts_count_in_announced_directories_only(pyunion: Union) -> None:
    write(pyunion.low2 / "d/f", "below")
    write(pyunion.low / "d/f")
    os.setxattr(pyunion.low / "d/f", "trusted.overlay.whiteout", b"y")
    pyunion.compare_with_kernel = False  # it lists the name and then does not find it
    pyunion.mount()
    assert tree(pyunion.at) == ["d/", "d/f"]
    assert (pyunion.at / "d/f").read_text() == ""


def test_what_the_kernel_wrote_is_read(union: Union) -> None:
    for name in ("a", "b", "sub/c"):
        write(union.low / "dir" / name, name)
    write(union.low2 / "dir/d", "d")
    write(union.low2 / "gone/x")
    write(union.low3 / "replaced/old")
    with kernel_overlay(union) as at:
        (at / "dir/a").unlink()
        append(at / "dir/sub/c", "+")
        (at / "gone/x").unlink()
        (at / "gone").rmdir()
        (at / "replaced/old").unlink()
        (at / "replaced").rmdir()
        (at / "replaced").mkdir()
        (at / "dir").rename(at / "moved")
        (at / "moved/sub").rename(at / "moved/bus")
        (at / "dir").mkdir()
        expected = tree(at)
    assert mark(union.top / "moved", "redirect") == b"dir"
    union.mount()
    assert tree(union.at) == expected
    assert (union.at / "moved/bus/c").read_text() == "sub/c+"
    assert (union.at / "moved/d").read_text() == "d"


def test_metadata_only_copies_of_the_kernel_show_the_lower_data(union: Union) -> None:
    write(union.low / "f", "precious")
    write(union.low2 / "d/g", "more")
    with kernel_overlay(union, "metacopy=on") as at:
        (at / "f").chmod(0o600)
        (at / "d/g").chmod(0o640)
        (at / "d/g").rename(at / "h")
        (at / "d").rename(at / "e")
    assert mark(union.top / "h", "metacopy") is not None
    union.mount("metacopy=on")
    assert (union.at / "f").read_text() == "precious"
    assert (union.at / "h").read_text() == "more"
    append(union.at / "h", " and more")
    (union.at / "f").chmod(0o644)
    union.remount()
    assert (union.at / "h").read_text() == "more and more"
    assert (union.at / "f").read_text() == "precious"
    union.unmount()
    assert mark(union.top / "h", "metacopy") is None
    assert (union.top / "h").read_text() == "more and more"


def test_a_file_of_two_names_stays_one_with_metadata_only_copies(union: Union) -> None:
    write(union.low / "one", "precious")
    os.link(union.low / "one", union.low / "two")
    union.compare_with_kernel = False  # without the index it counts the links of upper
    union.mount("metacopy=on", "index=on")
    (union.at / "one").chmod(0o600)
    assert mark(union.top / "one", "metacopy") is not None
    assert [(union.at / name).stat().st_mode & 0o777 for name in ("one", "two")] == [0o600] * 2
    union.remount()
    assert [(union.at / name).read_text() for name in ("two", "one")] == ["precious"] * 2
    (union.at / "one").rename(union.at / "three")
    (union.at / "two").unlink()
    union.remount()
    assert (union.at / "three").read_text() == "precious"
    append(union.at / "three", " data")
    union.remount()
    assert (union.at / "three").read_text() == "precious data"


def test_metadata_only_copies_are_read_without_the_option(pyunion: Union) -> None:
    write(pyunion.low / "f", "precious")
    with kernel_overlay(pyunion, "metacopy=on") as at:
        (at / "f").chmod(0o600)
    pyunion.mount()
    assert (pyunion.at / "f").read_text() == "precious"
    (pyunion.at / "f").rename(pyunion.at / "g")
    assert (pyunion.at / "g").read_text() == "precious"
    pyunion.remount()
    assert (pyunion.at / "g").read_text() == "precious"
    os.truncate(pyunion.at / "g", 4)
    assert (pyunion.at / "g").read_text() == "prec"


@pytest.mark.parametrize("value", [b"", b"\0\4\0\0"], ids=["empty", "header"])
def test_a_metadata_only_copy_in_a_lower_layer(union: Union, value: bytes) -> None:
    write(union.low3 / "f", "the data")
    write(union.low2 / "f", "\0" * 8, mode=0o600)
    os.setxattr(union.low2 / "f", "trusted.overlay.metacopy", value)
    union.mount("metacopy=on")
    assert (union.at / "f").read_text() == "the data"
    assert (union.at / "f").stat().st_mode & 0o777 == 0o600
    append(union.at / "f", "!")
    union.remount()
    assert (union.at / "f").read_text() == "the data!"


def test_a_metadata_only_copy_without_data_is_an_error_not_zeros(pyunion: Union) -> None:
    write(pyunion.low / "f", "\0" * 8)
    os.setxattr(pyunion.low / "f", "trusted.overlay.metacopy", b"")
    pyunion.compare_with_kernel = False
    pyunion.daemon.expect_complaints = True
    pyunion.mount()
    assert outcome((pyunion.at / "f").read_text) == "EIO"


def test_data_only_branches_hold_data_and_show_nothing_else(union: Union) -> None:
    store, more = union.base / "store", union.base / "more"
    write(store / "ab/blob", "the data")
    write(more / "cd/blob", "other data", mode=0o400)
    for name, blob in (("f", "/ab/blob"), ("d/g", "/cd/blob")):
        write(union.low / name, "\0" * (8 if name == "f" else 10), mode=0o644)
        os.setxattr(union.low / name, "trusted.overlay.metacopy", b"")
        os.setxattr(union.low / name, "trusted.overlay.redirect", blob.encode())
    union.mount("metacopy=on", lowers=[union.low], data=[store, more])
    assert tree(union.at) == ["d/", "d/g", "f"]
    assert (union.at / "f").read_text() == "the data"
    assert (union.at / "d/g").read_text() == "other data"
    assert (union.at / "d/g").stat().st_mode & 0o777 == 0o644
    append(union.at / "f", "!")
    union.remount()
    assert (union.at / "f").read_text() == "the data!"
    assert (store / "ab/blob").read_text() == "the data"


def test_uppers_with_index_and_origin_marks_are_accepted(pyunion: Union) -> None:
    write(pyunion.low / "a", "1")
    os.link(pyunion.low / "a", pyunion.low / "b")
    write(pyunion.low / "d/f", "2")
    with kernel_overlay(pyunion, "index=on") as at:
        append(at / "a", "+")
        (at / "d/f").chmod(0o600)
    pyunion.compare_with_kernel = False  # it now refuses these branches without index=on
    pyunion.mount()
    assert (pyunion.at / "a").read_text() == "1+"
    assert (pyunion.at / "d/f").read_text() == "2"
    assert [key for key in os.listxattr(pyunion.at / "a") if "overlay" in key] == []
    append(pyunion.at / "d/f", "x")


def test_marks_of_a_union_inside_the_union_are_shown_with_one_level_removed(union: Union) -> None:
    write(union.low / "d/f")
    os.setxattr(union.low / "d", "trusted.overlay.overlay.opaque", b"y")
    write(union.low2 / "d/g")
    union.mount()
    assert os.getxattr(union.at / "d", "trusted.overlay.opaque") == b"y"
    assert tree(union.at) == ["d/", "d/f", "d/g"]
    os.setxattr(union.at / "d/f", "trusted.overlay.redirect", b"inner")
    assert os.listxattr(union.at / "d/f") == ["trusted.overlay.redirect"]
    union.unmount()
    assert mark(union.top / "d/f", "overlay.redirect") == b"inner"
    assert mark(union.top / "d/f", "redirect") is None


def test_a_whole_overlay_can_live_in_the_union(union: Union) -> None:
    for name in ("l", "u", "w", "m"):
        (union.low / "inner" / name).mkdir(parents=True)
    write(union.low / "inner/l/d/f", "x")
    union.mount()
    inner = union.at / "inner"
    kernel = KernelMount(inner / "m")
    kernel.start(Layers([inner / "l", inner / "w"]))
    try:
        assert (inner / "m/d/f").read_text() == "x"
    finally:
        kernel.stop()


def test_marks_in_the_user_namespace(pyunion: Union) -> None:
    """What a mount without privileges leaves; the kernel's option of that name reads and writes the same."""
    union = pyunion
    write(union.low2 / "d/old")
    write(union.low / "d/new")
    os.setxattr(union.low / "d", "user.overlay.opaque", b"y")
    write(union.low / "gone/x")
    union.compare_with_kernel = False
    union.mount("userxattr")
    assert tree(union.at) == ["d/", "d/new", "gone/", "gone/x"]
    shutil.rmtree(union.at / "gone")
    (union.at / "gone").mkdir()
    assert [key for key in os.listxattr(union.at / "gone") if "overlay" in key] == []
    union.unmount()
    assert os.getxattr(union.top / "gone", "user.overlay.opaque") == b"y"
    lowers = f"{union.top}:{union.low}:{union.low2}"
    run("mount", "-t", "overlay", "overlay", "-o", f"ro,userxattr,lowerdir={lowers}", union.at)
    try:
        assert tree(union.at) == ["d/", "d/new", "gone/"]
    finally:
        run("umount", union.at)


def test_aufs_names_are_ordinary(union: Union) -> None:
    write(union.low2 / "d/hidden-by-aufs")
    write(union.low / "d/.wh.hidden-by-aufs")
    write(union.low / "d/.wh..wh..opq")
    union.mount()
    assert tree(union.at) == ["d/", "d/.wh..wh..opq", "d/.wh.hidden-by-aufs", "d/hidden-by-aufs"]
    write(union.at / ".wh.new", "text")
    union.remount()
    assert (union.at / ".wh.new").read_text() == "text"
