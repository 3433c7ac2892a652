"""`pyunion check` finds what is wrong with an upper branch; the kernel and pyunion mount alike what it has repaired."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.arrivals import arrival
from tests.harness.files import append, is_whiteout, make_whiteout, mark, outcome, run, tree, write
from tests.harness.snapshot import assert_same, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion as command
from tests.layers.changes import change, fill

_SOUND, _FOUND, _REPAIRED, _BUSY = 0, 8, 9, 4


def check(union: Union, *options: str, status: int) -> list[str]:
    lowers = ":".join(map(str, (union.low, union.low2, union.low3)))
    done = command("check", "--upper", union.top, "--work", union.work, "--lower", lowers, *options)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout
    return done.stdout.splitlines()


def check_and_repair(union: Union) -> list[str]:
    """What is found; a look changes nothing, and after the repair nothing is found any more."""
    before = snapshot(union.top), snapshot(union.work)
    found = check(union, status=_FOUND)
    assert_same(before[0], snapshot(union.top), "a look has changed upper")
    assert_same(before[1], snapshot(union.work), "a look has changed work")
    repaired = check(union, "--repair", status=_REPAIRED)
    assert len(repaired) == len(found)
    assert check(union, status=_SOUND) == []
    return found


@pytest.mark.parametrize("options", [(), ("metacopy=on",), ("index=on",)], ids=["plain", "metacopy", "index"])
def test_what_a_mount_has_left_is_sound(union: Union, options: tuple[str, ...]) -> None:
    fill(union)
    os.link(union.low2 / "file", union.low2 / "link")
    union.compare_with_kernel = False  # the links of a file are one with the index only
    union.mount(*options)
    change(union.at)
    (union.at / "link").unlink()
    union.unmount()
    assert check(union, status=_SOUND) == []


def test_a_killed_daemon(pyunion: Union) -> None:
    with (pyunion.low / "big").open("wb") as file:
        file.write(b"\xaa" * (256 << 20))
    write(pyunion.low / "other", "other")
    pyunion.watch_lowers = False
    pyunion.mount()
    append(pyunion.at / "other", " and more")
    os.sync()
    writer = subprocess.Popen(["sh", "-c", 'printf X >> "$0"', pyunion.at / "big"], stderr=subprocess.DEVNULL)
    arrival(pyunion.work / "work", "#")  # the copy has begun
    pyunion.daemon.kill()
    writer.wait()
    run("umount", pyunion.at)
    pyunion.forget()
    (left,) = [path.name for path in (pyunion.work / "work").iterdir() if path.is_file()]
    (found,) = check_and_repair(pyunion)
    assert found.startswith(f"{pyunion.work}/work/{left}: ")
    (aside,) = (pyunion.work / "aside").iterdir()
    assert aside.is_file()
    aside.unlink()
    pyunion.mount()
    assert (pyunion.at / "other").read_text() == "other and more"
    assert (pyunion.at / "big").stat().st_size == 256 << 20


def test_whiteouts_that_hide_nothing(pyunion: Union) -> None:
    write(pyunion.low2 / "d/hidden")
    make_whiteout(pyunion.top / "d/hidden")
    make_whiteout(pyunion.top / "d/nothing")
    make_whiteout(pyunion.top / "new/nothing")
    make_whiteout(pyunion.top / "nothing")
    make_whiteout(pyunion.low / "d/gone")
    make_whiteout(pyunion.top / "d/gone")
    write(pyunion.low2 / "d/gone")
    found = check_and_repair(pyunion)
    assert [line.split(": ")[0] for line in found] == [
        f"{pyunion.top}/{name}" for name in ("nothing", "new/nothing", "d/gone", "d/nothing")
    ]
    assert is_whiteout(pyunion.top / "d/hidden")
    pyunion.mount()
    assert tree(pyunion.at) == ["d/", "new/"]


def test_a_repair_keeps_the_times_of_directories(pyunion: Union) -> None:
    make_whiteout(pyunion.top / "d/nothing")
    os.utime(pyunion.top / "d", ns=(1, 2))
    check_and_repair(pyunion)
    assert (pyunion.top / "d").stat().st_mtime_ns == 2


def test_a_redirect_that_is_no_path(pyunion: Union) -> None:
    write(pyunion.low / "d/lower")
    write(pyunion.top / "d/upper")
    os.setxattr(pyunion.top / "d", "trusted.overlay.redirect", b"../x")
    (found,) = check_and_repair(pyunion)
    assert "'../x' is no path" in found
    pyunion.mount()
    assert tree(pyunion.at) == ["d/", "d/lower", "d/upper"]


def test_what_leads_nowhere_is_left_alone(pyunion: Union) -> None:
    """The lower branches that it was made with may be somewhere."""
    write(pyunion.low / "away/x")
    write(pyunion.low / "file", "data")
    pyunion.compare_with_kernel = False
    pyunion.mount("metacopy=on")
    (pyunion.at / "away").rename(pyunion.at / "here")
    (pyunion.at / "file").chmod(0o600)
    pyunion.unmount()
    (pyunion.low / "away/x").unlink()
    (pyunion.low / "away").rmdir()
    (pyunion.low / "file").unlink()
    before = snapshot(pyunion.top)
    for options in ((), ("--repair",)):
        said = {line.split(": ")[0]: line for line in check(pyunion, *options, status=_FOUND)}
        assert "its redirect to 'away' leads to no directory" in said[f"{pyunion.top}/here"]
        assert "its data are in none of the lower branches" in said[f"{pyunion.top}/file"]
    assert mark(pyunion.top / "here", "redirect") == b"away"
    assert snapshot(pyunion.top)[b"file"] == before[b"file"]
    assert is_whiteout(pyunion.top / "away")  # with other lower branches it hides something


def test_index_entries_of_files_that_are_gone(pyunion: Union) -> None:
    for name in ("gone", "kept"):
        write(pyunion.low / name, name)
        os.link(pyunion.low / name, pyunion.low / f"{name}2")
    pyunion.compare_with_kernel = False
    pyunion.mount("index=on")
    for name in ("gone", "kept"):
        append(pyunion.at / name, "+")
    pyunion.unmount()
    (pyunion.low / "gone").unlink()
    (pyunion.low / "gone2").unlink()
    entries = {path.name for path in (pyunion.work / "index").iterdir()}
    (found,) = check_and_repair(pyunion)
    assert "is in none of the lower branches any more" in found
    assert len(entries) == 2
    assert len(list((pyunion.work / "index").iterdir())) == 1
    (aside,) = (pyunion.work / "aside").iterdir()
    assert aside.read_text() == "gone+"
    aside.unlink()
    pyunion.mount("index=on")
    assert {path.name: path.read_text() for path in pyunion.at.iterdir()} == {
        "gone": "gone+", "kept": "kept+", "kept2": "kept+",
    }  # fmt: skip


def test_an_index_entry_without_origin(pyunion: Union) -> None:
    write(pyunion.low / "one", "1")
    os.link(pyunion.low / "one", pyunion.low / "two")
    pyunion.compare_with_kernel = False
    pyunion.mount("index=on")
    append(pyunion.at / "one", "+")
    pyunion.unmount()
    os.removexattr(pyunion.top / "one", "trusted.overlay.origin")
    (found,) = check_and_repair(pyunion)
    assert "has no origin" in found
    assert (pyunion.top / "one").read_text() == "1+"


def test_marks_in_the_wrong_namespace(pyunion: Union) -> None:
    write(pyunion.low / "d/lower")
    write(pyunion.top / "d/upper")
    os.setxattr(pyunion.top / "d", "user.overlay.opaque", b"y")
    (found,) = check(pyunion, "--repair", status=_FOUND)
    assert found.startswith(f"{pyunion.top}/d: user.overlay.opaque says nothing to a mount that reads trusted.overlay")
    assert check(pyunion, "--userxattr", status=_SOUND) == []
    os.removexattr(pyunion.top / "d", "user.overlay.opaque")
    os.setxattr(pyunion.top / "d", "trusted.overlay.opaque", b"y")
    (found,) = check(pyunion, "--userxattr", status=_FOUND)
    assert "trusted.overlay.opaque says nothing" in found


def test_whiteouts_of_an_oci_layer(pyunion: Union) -> None:
    for name in ("d/gone", "d/again", "e/gone", "e/kept"):
        write(pyunion.low / name, "lower")
    for name in ("d/.wh.gone", "d/.wh.again", "d/.wh.never", "e/.wh..wh..opq", "e/new"):
        write(pyunion.top / name)
    write(pyunion.top / "d/again", "upper")
    found = check_and_repair(pyunion)
    assert len(found) == 4
    assert len(list((pyunion.work / "aside").iterdir())) == 4
    for path in (pyunion.work / "aside").iterdir():
        path.unlink()
    pyunion.mount()
    assert tree(pyunion.at) == ["d/", "d/again", "e/", "e/new"]
    assert (pyunion.at / "d/again").read_text() == "upper"


def test_a_file_of_the_user_stays(pyunion: Union) -> None:
    write(pyunion.top / ".wh.mine", "words")
    (found,) = check(pyunion, "--repair", status=_FOUND)
    assert "rename it if it is yours" in found
    assert (pyunion.top / ".wh.mine").read_text() == "words"


@pytest.mark.parametrize("value", [b"", b"ax"], ids=["nothing", "other"])
def test_a_protection_that_protects_nothing(pyunion: Union, value: bytes) -> None:
    write(pyunion.top / "file", "text")
    write(pyunion.top / "d/file")
    for name in ("file", "d"):
        os.setxattr(pyunion.top / name, "trusted.overlay.protattr", value)
    found = check_and_repair(pyunion)
    assert [line.split(": ")[0] for line in found] == [f"{pyunion.top}/{name}" for name in ("d", "file")]
    assert mark(pyunion.top / "file", "protattr") is None
    pyunion.mount()
    append(pyunion.at / "file", " and more")


def test_what_chattr_has_forbidden_is_sound(pyunion: Union) -> None:
    write(pyunion.low / "d/file", "text")
    pyunion.mount()
    run("chattr", "+i", pyunion.at / "d/file")
    run("chattr", "+a", pyunion.at / "d")
    pyunion.unmount()
    assert check(pyunion, "--repair", status=_SOUND) == []
    assert (mark(pyunion.top / "d/file", "protattr"), mark(pyunion.top / "d", "protattr")) == (b"i", b"a")


def test_the_mark_of_a_volatile_mount(pyunion: Union) -> None:
    pyunion.mount("volatile")
    pyunion.unmount()
    (found,) = check(pyunion, "--repair", status=_FOUND)
    assert found.startswith(f"{pyunion.work}/work/incompat/volatile: ")
    assert (pyunion.work / "work/incompat/volatile").exists()


@pytest.mark.parametrize("options", [(), ("--repair",)], ids=["look", "repair"])
def test_not_while_it_is_mounted(union: Union, options: tuple[str, ...]) -> None:
    union.mount()
    write(union.at / "file")
    done = command("check", "--upper", union.top, "--work", union.work, "--lower", union.low, *options)
    assert (done.returncode, done.stdout) == (_BUSY, "")
    assert "in use by" in done.stderr


def test_a_second_repair_does_not_overwrite_what_the_first_moved(pyunion: Union) -> None:
    for text in ("first", "second"):
        write(pyunion.work / "work/#1", text)
        check_and_repair(pyunion)
    kept: list[Path] = sorted((pyunion.work / "aside").iterdir())
    assert [path.read_text() for path in kept] == ["first", "second"]


def test_without_lower_branches_whiteouts_are_taken_for_good(scratch: Path) -> None:
    make_whiteout(scratch / "upper/gone")
    (scratch / "work").mkdir()
    done = command("check", "--upper", scratch / "upper", "--work", scratch / "work")
    assert (done.returncode, done.stdout, done.stderr) == (_SOUND, "", "")
    assert outcome((scratch / "upper/gone").lstat) == "OK"
