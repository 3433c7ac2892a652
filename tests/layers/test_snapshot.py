"""A snapshot is taken again and again until nothing has changed, and each look takes time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyunion.branch.dirs import Branch, DirCache
from pyunion.layers.snapshot import Snapshot
from tests.harness.files import make_whiteout, write
from tests.harness.snapshot import assert_same, snapshot

TICK_NS = 20_000_000  # within which two changes may have one time
NAMES = ("a", "b", "c", "d")


def _branch(path: Path) -> Branch:
    return Branch(0, bytes(path), os.open(path, os.O_RDONLY | os.O_DIRECTORY), DirCache(100), is_upper=True)


_OTHERS = {
    "nothing": lambda path: None,
    "a file": lambda path: path.write_text("file"),
    "a symlink": lambda path: path.symlink_to("/"),
    "a fifo": os.mkfifo,
    "a whiteout": make_whiteout,
    "a directory": lambda path: write(path / "another", "another"),
}


@pytest.mark.parametrize("other", _OTHERS.values(), ids=_OTHERS.keys())
@pytest.mark.parametrize("first", [True, False], ids=["file", "directory"])
def test_what_becomes_something_else_meanwhile(scratch: Path, first: bool, other: Callable[[Path], object]) -> None:
    """Wherever in the look it comes."""
    for moment in range(12):
        upper, copy = scratch / f"upper{moment}", scratch / f"copy{moment}"
        copy.mkdir()
        for name in NAMES:
            write(upper / name / "in/deep", name)
            write(upper / f"{name}-file", name)
        told = 0

        def tell(upper: Path = upper, moment: int = moment) -> None:
            nonlocal told
            told += 1
            if told == moment:
                for name in NAMES[1:]:
                    path = upper / (f"{name}-file" if first else name)
                    path.rename(upper / f"was-{name}")
                    other(path)

        branches = _branch(upper), _branch(copy)
        try:
            Snapshot(*branches, tell=tell).take()
        finally:
            for branch in branches:
                branch.close()
        assert_same(snapshot(upper), snapshot(copy), "the copy is another tree (upper | copy)")


@pytest.mark.parametrize("late", range(2 * len(NAMES)))
def test_links_that_were_just_made_stay_links(scratch: Path, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    """Wherever in the first look the moment comes from which their change time tells of any other change."""
    for name in ("upper", "copy"):
        (scratch / name).mkdir()
    (scratch / "upper" / NAMES[0]).write_text("text")
    for name in NAMES[1:]:
        os.link(scratch / "upper" / NAMES[0], scratch / "upper" / name)
    changed_ns = (scratch / "upper" / NAMES[0]).stat().st_ctime_ns
    asked = 0

    def clock() -> int:
        nonlocal asked
        asked += 1
        return changed_ns + (2 * TICK_NS if asked > late else 0)

    monkeypatch.setattr("pyunion.layers.snapshot.time.time_ns", clock)
    upper, copy = _branch(scratch / "upper"), _branch(scratch / "copy")
    try:
        Snapshot(upper, copy).take()
    finally:
        upper.close()
        copy.close()
    copies = [(scratch / "copy" / name).stat() for name in NAMES]
    assert len({st.st_ino for st in copies}) == 1
    assert copies[0].st_nlink == len(NAMES)
