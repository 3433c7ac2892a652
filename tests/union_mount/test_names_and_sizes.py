"""Names of any bytes and the greatest length, paths beyond PATH_MAX, huge directories, hundreds of layers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
