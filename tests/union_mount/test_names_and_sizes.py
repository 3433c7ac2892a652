"""Names of any bytes and the greatest length, paths beyond PATH_MAX, huge directories, hundreds of layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.files import make_opaque, make_whiteout, outcome, run, tree, write
from tests.harness.union import Union

NAMES = [
    b"a\nb",
    b"\xff\xfe\x80",
    b"-rf",
    b" leading",
    b"trailing ",
    b"back\\slash",
    b'quo"te',
    b"col:on",
    b"com,ma",
    "\N{SNOWMAN}".encode(),
    b".wh",
    b"...",
    b"\x01\x7f",
    b"*?[x]",
    b"n" * 255,
    b"\xe2" * 255,
]


@contextmanager
def inside(union: Union) -> Iterator[None]:
    """The root of the union as working directory, which must be left again to unmount."""
    before = os.getcwd()
    os.chdir(union.at)
    try:
        yield
    finally:
        os.chdir(before)


def test_names_are_bytes(union: Union) -> None:
    low = os.fsencode(union.low)
    for name in NAMES:
        with open(os.path.join(low, name), "w") as file:
            file.write("L")
        os.mkdir(os.path.join(low, name[:-1] + b"D"))
    union.mount()
    with inside(union):
        assert set(os.listdir(b".")) == {*NAMES, *(name[:-1] + b"D" for name in NAMES)}
        for name in NAMES:
            with open(name, "a") as file:
                file.write("U")
            moved = name[1:] + b"m"
            os.rename(name, moved)
            os.symlink(name, name)
            assert os.readlink(name) == name
            os.rmdir(name[:-1] + b"D")
            os.setxattr(moved, b"user.name", name[:200])
    union.remount()
    with inside(union):
        assert set(os.listdir(b".")) == {*NAMES, *(name[1:] + b"m" for name in NAMES)}
        for name in NAMES:
            with open(name[1:] + b"m") as file:
                assert file.read() == "LU"


def test_the_longest_name_in_every_operation(union: Union) -> None:
    """Nothing may be made of a name that needs room of its own, such as a prefix."""
    first, second, third = ("a" * 255, "b" * 255, "c" * 255)
    write(union.low / first, "x")
    write(union.low / second / third, "y")
    union.mount()
    at = union.at
    (at / first).chmod(0o600)
    (at / second).rename(at / third)
    (at / first).unlink()
    (at / first).mkdir()
    os.symlink("x", at / second)
    assert tree(at) == [first + "/", second, third + "/", f"{third}/{third}"]
    union.remount()
    assert tree(at) == [first + "/", second, third + "/", f"{third}/{third}"]
    too_long = at / ("a" * 256)
    assert outcome(os.stat, too_long) == "ENAMETOOLONG"
    assert outcome(os.mkdir, too_long) == "ENAMETOOLONG"
    assert outcome(os.rename, at / second, too_long) == "ENAMETOOLONG"


def _descend(top: bytes, name: bytes, levels: int, *, make: bool) -> None:
    os.chdir(top)
    for _ in range(levels):
        if make:
            os.mkdir(name)
        os.chdir(name)


def test_paths_deeper_than_path_max(union: Union) -> None:
    name, levels = b"d" * 200, 60  # 12,000 bytes
    before = os.getcwd()
    try:
        _descend(os.fsencode(union.low), name, levels, make=True)
        with open("low", "w") as file:
            file.write("low")
        os.chdir(before)
        union.mount()
        _descend(os.fsencode(union.at), name, levels, make=False)
        with open("low", "a") as file:
            file.write("+")
        os.mkdir("new")
        os.rename("low", "new/moved")
        os.symlink("new", "link")
        os.setxattr("new", "user.k", b"v")
        assert sorted(os.listdir(".")) == ["link", "new"]
    finally:
        os.chdir(before)
    union.remount()
    try:
        _descend(os.fsencode(union.at), name, levels, make=False)
        with open("new/moved") as file:
            assert file.read() == "low+"
    finally:
        os.chdir(before)


def test_a_deep_directory_moves(pyunion: Union) -> None:
    """A redirect of any length that the upper's xattrs can hold; the kernel writes no more than 256 bytes."""
    union = pyunion
    name, levels = b"e" * 100, 30
    before = os.getcwd()
    try:
        _descend(os.fsencode(union.low), name, levels, make=True)
        os.mkdir("x")
        write(union.low / "place/keep")
        os.chdir(before)
        union.mount()
        _descend(os.fsencode(union.at), name, levels, make=False)
        os.rename("x", union.at / "place/x")
    finally:
        os.chdir(before)
    union.remount()
    assert tree(union.at / "place") == ["keep", "x/"]


def test_a_directory_of_a_hundred_thousand_entries(union: Union) -> None:
    count = 100_000
    union.watch_lowers = union.compare_with_kernel = False
    script = 'cd "$0"; seq -f file-with-a-name-%06g "$1" "$2" | xargs touch'
    for layer, first, last in ((union.low, 1, 60_000), (union.low2, 40_001, count)):
        (layer / "d").mkdir()
        run("sh", "-c", script, layer / "d", str(first), str(last))
    for number in (1, 50_000, count):
        make_whiteout(union.top / f"d/file-with-a-name-{number:06}")
    union.mount()
    d = union.at / "d"
    expected = {f"file-with-a-name-{number:06}" for number in range(1, count + 1)}
    expected -= {f"file-with-a-name-{number:06}" for number in (1, 50_000, count)}
    for _ in range(2):
        listed = os.listdir(d)
        assert len(listed) == len(expected)
        assert set(listed) == expected
    (d / "file-with-a-name-000002").unlink()
    write(d / "new")
    assert len(os.listdir(d)) == len(expected)
    assert outcome(os.stat, d / "file-with-a-name-100000") == "ENOENT"
    run("rm", "-rf", d)
    assert os.listdir(union.at) == []


def test_a_listing_in_small_pieces_is_complete(union: Union) -> None:
    long = "x" * 240
    for number in range(2000):
        write((union.low, union.low2)[number % 2] / f"d/{long}{number}")
    union.mount()
    listed = run("ls", "-f", union.at / "d").split()
    assert len(listed) == len(set(listed)) == 2002


def test_what_many_layers_have_and_hide_does_not_depend_on_how_often_one_looks(union: Union) -> None:
    """After some looks a directory of many layers is known, and only the layers that have a name are asked."""
    look_often(union, make_whiteout)


def test_nor_what_marks_of_aufs_hide_there(pyunion: Union) -> None:
    pyunion.compare_with_kernel = False  # which takes them for files
    look_often(pyunion, lambda path: write(path.with_name(f".wh.{path.name}")), "aufs")


def look_often(union: Union, hide: Callable[[Path], object], *options: str) -> None:
    layers = [union.base / f"layer{number}" for number in range(12)]
    for number, layer in enumerate(layers):
        write(layer / f"d/own{number}", str(number))
        write(layer / f"d/sub{number % 3}/{number}")
        write(layer / f"d/every/{number}")
        write(layer / f"d/shared{number % 4}", str(number))
        if number == 2:
            for name in ("own5", "own1", "sub0", "shared3"):
                hide(layer / "d" / name)
    union.mount(*options, lowers=layers)
    d = union.at / "d"

    def look() -> dict[str, str]:
        names = [f"{kind}{number}" for kind in ("own", "shared", "none") for number in range(12)]
        return {name: (d / name).read_text() for name in names if (d / name).exists()}

    own = {f"own{number}": str(number) for number in range(12) if number != 5}
    expected = own | {"shared0": "0", "shared1": "1", "shared2": "2"}
    for _ in range(5):
        run("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches")
        assert look() == expected
        assert not (d / "sub0/3").exists()
        assert tree(d / "every") == sorted(str(number) for number in range(12))
    (d / "own7").unlink()
    write(d / "none3", "new")
    (d / "own8").rename(d / "none4")
    write(d / "own5", "again")
    run("rm", "-r", d / "sub1")
    (d / "sub1").mkdir()
    expected = {name: text for name, text in expected.items() if name not in ("own7", "own8")}
    expected |= {"none3": "new", "none4": "8", "own5": "again"}
    for _ in range(2):
        assert look() == expected
        assert tree(d / "sub1") == []
        union.remount()


@pytest.mark.parametrize("count", [100, 500])
def test_hundreds_of_layers(pyunion: Union, count: int) -> None:
    union = pyunion
    long = union.base / ("a-long-name-like-those-of-container-storage-" + "0123456789abcdef" * 8)
    layers = [long / f"{number}" for number in range(count)]
    for number, layer in enumerate(layers):
        write(layer / f"d/f{number}", str(number))
        write(layer / "same", str(number))
    make_opaque(layers[-2] / "d")
    union.watch_lowers = union.compare_with_kernel = False
    union.mount(lowers=layers)
    assert (union.at / "same").read_text() == "0"
    assert len(os.listdir(union.at / "d")) == count - 1
    assert (union.at / f"d/f{count - 2}").read_text() == str(count - 2)
    assert outcome(os.stat, union.at / f"d/f{count - 1}") == "ENOENT"
    (union.at / "d").rename(union.at / "e")
    union.remount()
    assert len(os.listdir(union.at / "e")) == count - 1
